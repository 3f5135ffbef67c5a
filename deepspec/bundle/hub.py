"""A bundle in a repository of a model hub, as one commit.

The hub is that of HF_ENDPOINT (else huggingface.co), the token that of HF_TOKEN: read from the environment alone, and
never part of a message.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.bundle.index import INDEX_FILE, Bundle, read_index
from deepspec.errors import BadArgument, DeepspecError, TransientError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TOKEN = "HF_TOKEN"  # noqa: S105  a variable's name
ENDPOINT = "HF_ENDPOINT"
_MEANWHILE = "Someone else has written to it meanwhile: look at it, and run again."
_REMEDIES = {
    401: f"The token in {TOKEN} is not valid: make a new one.",
    403: f"The token in {TOKEN} may not write there: give it that right, or name another repository.",
    404: "Check the owner's name, and what the token may see.",
    412: _MEANWHILE,
    409: _MEANWHILE,
    413: "The hub takes no file of this size, or no more of them.",
}


class PublishingRefused(DeepspecError):
    """A hub does not take what is sent."""


def token() -> str:
    """The token of the environment.

    Raises:
        BadArgument: there is none.
    """
    found = os.environ.get(TOKEN, "").strip()
    if not found:
        raise BadArgument("there is no token for the hub.", where=TOKEN, remedy="Set it to one that may write.")
    return found


def send(folder: Path, bundle: Bundle, repository: str, *, public: bool) -> tuple[str, bool]:
    """Commit a bundle to a repository, which is made if there is none; return its address, and whether it was sent.

    Args:
        folder, bundle: which.
        repository: `owner/name`.
        public: make a new repository public.

    Raises:
        BadArgument: there is no token.
        PublishingRefused: the hub refuses.
        TransientError: it does not answer, or fails.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    endpoint = os.environ.get(ENDPOINT, "").rstrip("/") or "https://huggingface.co"
    api, address = HfApi(endpoint=endpoint, token=token()), f"{endpoint}/{repository}"
    with _named_errors(endpoint, repository):
        api.create_repo(repository, exist_ok=True, private=not public)
        known = api.model_info(repository)
        names = {one.rfilename for one in known.siblings or ()}
        there = _index_at(api, repository, known.sha) if INDEX_FILE in names else None
        if there == bundle and bundle.files.keys() <= names:
            return address, False
        stale = names & (there.files.keys() if there is not None else set()) - bundle.files.keys()
        what = f"{bundle.draft.model or bundle.draft.algorithm} {bundle.draft.version or ''}".strip()
        api.create_commit(  # upload_folder would make several of one folder
            repository,
            [
                *(CommitOperationDelete(name) for name in sorted(stale)),
                *(CommitOperationAdd(name, folder / name) for name in sorted([*bundle.files, INDEX_FILE])),
            ],
            commit_message=f"{what}, bundle {bundle.digest[:12]}",
            parent_commit=known.sha,
        )
    return address, True


def _index_at(api: "HfApi", repository: str, commit: str | None) -> Bundle | None:
    """The index in a commit; None: no bundle of ours."""
    with tempfile.TemporaryDirectory(prefix="deepspec-hub-") as folder:
        api.hf_hub_download(repository, INDEX_FILE, revision=commit, local_dir=folder)
        with contextlib.suppress(DeepspecError):
            return read_index(Path(folder))
    return None


@contextmanager
def _named_errors(endpoint: str, repository: str) -> Iterator[None]:
    """Failures of the hub in our words, without any of its own: they may quote what was sent."""
    import httpx2  # what huggingface_hub asks with
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    where = f"{endpoint}/{repository}"
    repeat = "Run again: nothing is visible before all of it is there."
    try:
        yield
    except HFValidationError:
        raise BadArgument(
            f"{repository!r} is no name of a repository.", where="DESTINATION", remedy="Name OWNER/NAME."
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status >= 500 or status == 429:
            raise TransientError(f"the hub failed ({status}).", where=where, remedy=repeat) from None
        remedy = _REMEDIES.get(status, "Look whether it takes such files.")
        raise PublishingRefused(f"the hub refuses ({status}).", where=where, remedy=remedy) from None
    except ValueError:  # of what the README.md's front matter says
        raise PublishingRefused(
            "the hub refuses the card.", where=where, remedy="Look at the fields at the top of README.md."
        ) from None
    except (OSError, RuntimeError, httpx2.HTTPError) as error:
        raise TransientError(f"the hub does not answer ({type(error).__name__}).", where=where, remedy=repeat) from None
