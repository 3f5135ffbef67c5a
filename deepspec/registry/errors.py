"""What can go wrong between a trained draft and a served one."""

from deepspec.errors import ArtifactError, DeepspecError, GateFailed


class PromotionConflict(DeepspecError):
    """The champion changed since the verdict was measured: the challenger has to be judged against the new one."""


class DraftBlocked(GateFailed):
    """The draft, or one like it, was rolled back: only a person may let it be promoted again."""


class PromotionLogDamaged(ArtifactError):
    """An entry of the promotion log cannot be read, or does not follow from the one before it."""


class DraftDamaged(ArtifactError):
    """A registered draft's bytes are not what was registered: it cannot serve."""


class OtherHistory(ArtifactError):
    """Production's promotion log says something else than the one that it is a copy of."""


class VersionRecordDamaged(ArtifactError):
    """What is known of a version in production cannot be read."""


class NothingToRollBackTo(DeepspecError):
    """The model has no earlier champion, or the one asked for never was champion."""

    exit_code = 2


class TrackingError(DeepspecError):
    """MLflow cannot do what was asked, or does not answer."""


class TrackingLost(TrackingError):
    """MLflow's server does not answer: it may do so later."""
