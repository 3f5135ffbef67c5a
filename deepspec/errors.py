"""Typed errors: what is wrong, where, and what to do about it.

Every error a user can meet is one of these. They survive pickling between processes, and each class carries the exit
code of the command line's contract: 1 a run failed, 2 the user's input is wrong, 3 a gate refused.
"""

from typing import Any


class DeepspecError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: one sentence saying what is wrong, with the offending value.
        where: file:row, recipe field, artifact key or tensor name.
        remedy: what the reader can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f" {self.remedy}" if self.remedy else ""
        return f"{place}{self.what}{advice}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.__dict__)


def _rebuild(cls: type[DeepspecError], state: dict[str, Any]) -> DeepspecError:
    error = cls.__new__(cls)
    Exception.__init__(error, state["what"])
    error.__dict__.update(state)
    return error


class RecipeError(DeepspecError):
    """A recipe field is unknown, of the wrong type or out of range."""

    exit_code = 2


class BadArgument(DeepspecError):
    """An argument of a command names nothing, or arguments are missing."""

    exit_code = 2


class BudgetExceeded(RecipeError):
    """A run would take more than its recipe's budget, or has used it up."""


class NightsError(DeepspecError):
    """A file of nights that cannot be applied."""

    exit_code = 2


class DataError(DeepspecError):
    """Input rows, files or benchmarks that cannot be used."""

    exit_code = 2


class UnsupportedTarget(DeepspecError):
    """A target model (or its tokenizer) that deepspec cannot work with."""

    exit_code = 2


class IncompatibleDraft(DeepspecError):
    """A draft whose tensors or configuration do not fit the target or the states."""

    exit_code = 2


class NoConfidence(IncompatibleDraft):
    """A draft without a confidence head was asked for confidences."""


class ArtifactError(DeepspecError):
    """The artifact store cannot do what was asked."""


class ArtifactMissing(ArtifactError):
    """No valid artifact under that kind and key."""


class ArtifactUnknown(ArtifactMissing):
    """The user's words name no artifact, or several."""

    exit_code = 2


class ArtifactDamaged(ArtifactError):
    """An artifact's bytes no longer match its manifest: its producer has to run again."""

    def __init__(self, what: str, *, kind: str, key: str, file: str | None = None) -> None:
        super().__init__(what, where=f"{kind}/{key}" + (f"/{file}" if file else ""), remedy="It will be rebuilt.")
        self.kind = kind
        self.key = key
        self.file = file


class StoreFull(ArtifactError):
    """No room left where artifacts are written."""


class RecordTooLarge(ArtifactError):
    """A record in the store is larger than any that deepspec writes."""


class LeaseHeld(ArtifactError):
    """Another live run holds the lease on this work."""


class GateFailed(DeepspecError):
    """The challenger did not pass the gates; the pipeline itself worked."""

    exit_code = 3


class LaunchError(DeepspecError):
    """The training processes could not be started, or died."""


class MeasurementError(DeepspecError):
    """A measurement that would mislead: something else took part in it."""


class TransientError(DeepspecError):
    """A failure that may pass by itself (network, a service starting up): the only kind that is retried."""
