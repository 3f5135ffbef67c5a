"""What can go wrong on a host that pulls drafts."""

from deepspec.errors import ArtifactError, DeepspecError, LaunchError


class PulledDraftDamaged(ArtifactError):
    """The store's bytes are not those of the draft that was promoted: nothing of it is put in place."""


class OtherTarget(DeepspecError):
    """The draft was trained for another target than the host serves."""

    exit_code = 2


class NotUpdatable(DeepspecError):
    """A server that runs cannot take the new draft: the one that it has runs on."""


class EngineEnded(LaunchError):
    """An engine's own server could not be started, or died."""
