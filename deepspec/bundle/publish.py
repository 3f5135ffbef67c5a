"""Sending a bundle to a model hub, or under a prefix of a bucket; the whole of it is checked before.

Nothing half-sent is ever visible as a bundle: at a hub it is one commit, in a bucket the index comes last. So a call
that broke off is repeated, and one that finds its bundle there has nothing to do.
"""

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from deepspec.bundle import bucket, hub
from deepspec.bundle.index import INDEX_FILE, Bundle, flaw_in, read_index
from deepspec.bundle.write import write
from deepspec.errors import BadArgument, IncompatibleDraft
from deepspec.registry import draft_export
from deepspec.store import Store
from deepspec.store.backends.s3_location import SCHEME, Location

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_FORMS = "Name a hub's OWNER/NAME, or s3://bucket/prefix."


@dataclass(frozen=True)
class Published:
    """What became of it.

    Attributes:
        where: an address for people.
        changed: whether anything was sent.
        bundle: what is there now.
    """

    where: str
    changed: bool
    bundle: Bundle


def publish(
    name: str,
    destination: str,
    *,
    format_name: str,
    target: str,
    home: Path,
    store: Store,
    public: bool = False,
    unpromoted: bool = False,
) -> Published:
    """Publish a draft's bundle.

    Args:
        name: a bundle's folder; or a draft, whose bundle is written first.
        destination: `owner/name` at a hub, or `s3://bucket/prefix`.
        format_name, target: of the bundle that is written; see `write`.
        home, store: where versions and artifacts are.
        public: make a new repository of the hub public.
        unpromoted: send a draft that never was champion, too.

    Raises:
        BadArgument: the destination is neither, or a hub's token is missing.
        IncompatibleDraft: the draft was never promoted, or its bundle has a flaw; nothing was sent.
        PublishingRefused, ArtifactError: the destination refuses.
        TransientError: it does not answer.
    """
    to_bucket = destination.startswith(SCHEME)
    if to_bucket:
        if not Location.parse(destination, where="DESTINATION").prefix:
            raise BadArgument("a bucket alone is no place for a bundle.", where="DESTINATION", remedy=_FORMS)
    elif not _REPOSITORY.fullmatch(destination):
        raise BadArgument(f"{destination!r} is no place to publish to.", where="DESTINATION", remedy=_FORMS)
    else:
        hub.token()  # refused before anything is made
    folder = Path(tempfile.mkdtemp(prefix="deepspec-publish-"))
    try:
        source = Path(name)
        if not (source / INDEX_FILE).is_file():
            source = write(name, format_name, folder / "bundle", target, home=home, store=store)
        bundle = checked(source, unpromoted=unpromoted)
        if to_bucket:
            where, changed = bucket.send(source, bundle, destination, cache=folder / "cache")
        else:
            where, changed = hub.send(source, bundle, destination, public=public)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Published(where, changed, bundle)


def checked(folder: Path, *, unpromoted: bool = False) -> Bundle:
    """The index of a bundle that may be sent: all bytes are those written, and the format's check finds no flaw.

    Raises:
        BadArgument: it is no bundle.
        IncompatibleDraft: it may not be sent; says why.
    """
    bundle = read_index(folder)
    flaw = flaw_in(folder, bundle)
    flaws = [flaw] if flaw is not None else draft_export.check(bundle.weights_format, folder)
    if flaws:
        raise IncompatibleDraft(
            f"this bundle has a flaw: {flaws[0].rstrip('.')}.",
            where=str(folder),
            remedy="Nothing was sent; write the bundle again.",
        )
    if bundle.promotion is None and not unpromoted:
        raise IncompatibleDraft(
            "this draft was never promoted.",
            where=str(folder),
            remedy="Promote it (`deepspec promote`), or say --unpromoted.",
        )
    return bundle
