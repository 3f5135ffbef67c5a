"""Data sets on the hub: the part that is meant, the commit that it stands for, local copies of its files.

Imports the hub's client only when it is needed: commands that must start quickly read tables of data sets.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HubPart:
    """A part of a data set on the hub.

    Attributes:
        config: its configuration; None: the only one, or its default.
        split: its split; None: `train`, or the only one.
        files: these files of the repository instead, for data sets that cannot be loaded as a whole (they come with
            a loading script, or hold other tables, too).
    """

    config: str | None = None
    split: str | None = None
    files: tuple[str, ...] = ()


def split_id(location: str) -> tuple[str, str | None]:
    """Name and revision in `owner/name` or `owner/name@revision`."""
    name, _, revision = location.partition("@")
    return name, revision or None


def commit_of(location: str) -> str:
    """The commit that a data set id stands for now.

    Raises:
        OSError: it cannot be looked up.
    """
    from huggingface_hub import HfApi

    name, revision = split_id(location)
    with _as_os_error(location):
        return str(HfApi().dataset_info(name, revision=revision).sha)


def local_files(location: str, part: HubPart) -> Iterator[tuple[str, str]]:
    """Each of the part's files, by its name in the repository, and the path of a copy in the hub's local cache.

    Raises:
        OSError: it cannot be had.
    """
    from huggingface_hub import hf_hub_download

    name, revision = split_id(location)
    for file in part.files:
        with _as_os_error(f"{location}/{file}"):
            path = hf_hub_download(name, file, repo_type="dataset", revision=revision)
        yield file, path


@contextmanager
def _as_os_error(what: str) -> Iterator[None]:
    """Failures of the hub's client as one type; it has changed the HTTP library below it more than once."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    http_error: type[BaseException] = HfHubHTTPError.__bases__[
        0
    ]  # that library's base: what is raised where no answer comes
    try:
        yield
    except (http_error, HfHubHTTPError, HFValidationError) as error:
        raise OSError(f"{what}: {error}") from error
