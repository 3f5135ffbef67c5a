"""Where the tensors of a draft's directory lie: in one file, or in several with an index; no torch here."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepspec.errors import IncompatibleDraft, UnsupportedTarget
from deepspec.targets.weight_files import StoredTensor, stored_tensors


def stored_weights(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a draft's directory, by name: its file, dtype and shape, by the files' headers.

    Raises:
        IncompatibleDraft: there are no weights, they are damaged, or it is not clear which files count or which tensors
            they hold: names the file, and the tensor if it is about one.
    """
    with about_a_draft():
        return stored_tensors(directory)


@contextmanager
def about_a_draft() -> Iterator[None]:
    """What the readers of any model directory refuse, as the error of a draft."""
    try:
        yield
    except UnsupportedTarget as error:
        raise IncompatibleDraft(error.what, where=error.where, remedy=error.remedy) from error
