"""Writing the dashboard: `dashboard/index.html` and `dashboard/dashboard.json` in the store, or in a folder.

Each time both are written from everything in the store. When two runs end at once, the other run may be missing from
one page until the next one is written. A run that has done its work does not fail for a page.
"""

import contextlib
import logging
from datetime import UTC, datetime
from pathlib import Path

from deepspec.atomic_write import write_bytes, write_text
from deepspec.dashboard.collect import collect
from deepspec.errors import ArtifactError, DeepspecError
from deepspec.reports.dashboard.feed import FORMAT, Feed
from deepspec.reports.dashboard.page import page_of
from deepspec.store import Backend, Store
from deepspec.store.layout import DASHBOARD
from deepspec.store.records import refuse_newer, seal, unseal

logger = logging.getLogger(__name__)

_MADE_UP = (ValueError, TypeError, LookupError, ArithmeticError)
"""Errors of values that deepspec never writes, but that another writer to the store may have put there."""
_UNUSABLE = (DeepspecError, *_MADE_UP)

PAGE = "index.html"
FEED = "dashboard.json"


def publish_dashboard(store: Store, *, but: str | None = None) -> None:
    """Write the dashboard into the store; what is wrong is warned of, and nothing is raised.

    Args:
        store: that it is about.
        but: a run that is just ending.
    """
    try:
        feed, page = _made(store, but)
        store.backend.put(f"{DASHBOARD}/{FEED}", _sealed(feed))
        store.backend.put(f"{DASHBOARD}/{PAGE}", page.encode())
    except _UNUSABLE as error:
        logger.warning("The dashboard in the store is not up to date: %s", error)


def write(store: Store, out: Path) -> Feed:
    """Write the dashboard into a folder.

    Args:
        store: that it is about.
        out: made if it is missing.

    Returns:
        what was written.

    Raises:
        ArtifactError: the store refuses, or the folder cannot be written.
        TransientError: the store does not answer.
    """
    feed, page = _made(store, None)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_bytes(out / FEED, _sealed(feed))
        write_text(out / PAGE, page)
    except OSError as error:
        raise ArtifactError(
            f"The dashboard cannot be written: {error.strerror or error}.",
            where=str(out),
            remedy="Name another folder with --out.",
        ) from error
    return feed


def earlier_feed(backend: Backend) -> Feed | None:
    """The feed that is in the store; None: there is none that can be used.

    Raises:
        TransientError: the store does not answer.
    """
    path = f"{DASHBOARD}/{FEED}"
    try:
        content = unseal(backend.read(path))
        refuse_newer(content, FORMAT, what="This dashboard", where=path, otherwise="it is written again")
        return Feed.from_json(content, where=path)
    except (FileNotFoundError, ValueError, ArtifactError):
        return None


def _made(store: Store, but: str | None) -> tuple[Feed, str]:
    """Feed and page; what was collected before is used if a page can be made of it.

    Raises:
        ArtifactError, TransientError: the store refuses, or does not answer.
    """
    now, earlier = datetime.now(UTC), earlier_feed(store.backend)
    if earlier is not None:
        with contextlib.suppress(*_MADE_UP):
            feed = collect(store, now, earlier=earlier, but=but)
            return feed, page_of(feed)
    feed = collect(store, now, but=but)
    return feed, page_of(feed)


def _sealed(feed: Feed) -> bytes:
    return seal(feed.to_json()) + b"\n"
