"""What can go wrong on a host that pulls drafts."""

from deepspec.errors import ArtifactError, DeepspecError


class PulledDraftDamaged(ArtifactError):
    """The store's bytes are not those of the draft that was promoted: nothing of it is put in place."""


class OtherTarget(DeepspecError):
    """The draft was trained for another target than the host serves."""

    exit_code = 2
