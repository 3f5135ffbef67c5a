"""Pulling a draft: every byte is compared with what was promoted, then one rename puts it in place.

The chain: an entry of the promotion log names the draft's content digest, the digest is SHA-256 over the manifest's
list of files, and the list holds the SHA-256 of every file. Files come from the store itself, never from a cache.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from deepspec.atomic_write import write_text
from deepspec.errors import IncompatibleDraft
from deepspec.progress import SILENT, Progress
from deepspec.serving.errors import OtherTarget, PulledDraftDamaged
from deepspec.serving.names import Draft
from deepspec.serving.swap import Place
from deepspec.store import Manifest, Store, layout
from deepspec.store.fingerprint import Fingerprints, model_files
from deepspec.store.manifest import ABOUT, FileEntry, content_digest
from deepspec.store.reading import pieces
from deepspec.store.records import JsonRecord, refuse_newer, seal, unseal

RECORD = "deepspec-pull.json"
FORMAT = 1
"""Raised when a record is written that an older deepspec could not read."""

_FOLDER = "draft/"
_LOOKS = 3
"""How often a file is fetched before its bytes, rather than a transfer, count as damaged."""
_MOST_RECORD_BYTES = 1 << 20


class Pulled(JsonRecord):
    """What lies in DIR, as `deepspec-pull.json` there says it.

    Attributes:
        format: version of this record.
        model, version: as it is registered; empty: pulled by another name.
        kind, key, digest: of the artifact.
        source: the store.
        since: ISO 8601, UTC: when it was put in place.
        hook_exit: exit code of the last command that was run for it; None: none was.
    """

    format: int
    model: str
    version: str
    kind: str
    key: str
    digest: str
    source: str
    since: str
    hook_exit: int | None

    def write(self, folder: Path) -> None:
        """Put it into the draft's folder, whole or not at all."""
        write_text(folder / RECORD, seal(self.to_json()).decode() + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Pulled | None":
        """The record in a draft's folder; None if there is none, or it is not intact."""
        file = folder / RECORD
        try:
            record = unseal(file.read_bytes()[:_MOST_RECORD_BYTES])
            refuse_newer(record, FORMAT, what="This pulled draft", where=str(file), otherwise="pull elsewhere")
            return cls.from_json(record, where=str(file))
        except (OSError, ValueError):
            return None


@dataclass(frozen=True)
class Outcome:
    """What a pull did.

    Attributes:
        held: what lies in DIR now.
        folder: where DIR leads now.
        changed: whether DIR leads elsewhere than before.
        downloaded_bytes: read from the store, but for records; 0: all was there.
        tampered: what was wrong with the files that were there; empty if nothing was.
    """

    held: Pulled
    folder: Path
    changed: bool
    downloaded_bytes: int
    tampered: str = ""


def pull(
    draft: Draft,
    store: Store,
    place: Place,
    *,
    target: Path | None = None,
    memo: Path | None = None,
    progress: Progress = SILENT,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Outcome:
    """Let DIR lead to a draft, every byte of which has been checked; nothing is downloaded if it is there already.

    Args:
        draft: which.
        store: is only read. A bucket's cache should be `place.download`: files are moved out of it.
        place: DIR.
        target: the target that the host serves; None: any.
        memo: remembers fingerprints of the target's files.
        progress: counts files.
        now: the time, for the record.

    Raises:
        PulledDraftDamaged: the store's bytes are not those that were promoted; names the file.
        OtherTarget: the draft was trained for another target.
        StoreFull: this disk is full.
        ArtifactError: the store refuses, another pull goes on, or DIR cannot be written.
        TransientError: the store does not answer.
        In each case DIR is as it was, and nothing is left beside it.
    """
    manifest = _manifest(draft, store)
    files = _files(manifest)
    fits = target is None or _same_target(manifest, target, memo)
    with place.alone():
        before = place.held()
        folder, tampered = _there(draft, files, place)
        downloaded = 0
        if folder is None:
            folder = place.fresh(draft.digest)
            progress.start(len(files), "files")
            for name, entry in files.items():
                _fetch(entry, folder / name, manifest, store)
                downloaded += entry.size
                progress.advance()
        if target is not None and not fits:
            check_config(folder, target)
        held = _record(draft, folder, store, now, new=folder != before)
        place.switch(folder)
        return Outcome(held, folder, folder != before, downloaded, tampered)


def _manifest(draft: Draft, store: Store) -> Manifest:
    """The newest manifest with the draft's content; read without `Store.find`, which may write where it finds damage.

    Raises:
        PulledDraftDamaged: there is none.
    """
    listing = store.backend.list(f"{draft.kind}/{draft.key}")
    condemned = layout.numbers(listing, layout.CONDEMNED)
    for number in sorted(layout.numbers(listing, layout.MANIFEST) - condemned, reverse=True):
        manifest = store.manifest(draft.kind, draft.key, number)
        if manifest is not None and content_digest(manifest.files) == draft.digest:
            return manifest
    raise _damaged(draft, f"manifest.{max(layout.numbers(listing, layout.MANIFEST), default=1)}.json", "is not valid")


def _files(manifest: Manifest) -> dict[str, FileEntry]:
    """The draft's own files by their names in its directory."""
    inside = {entry.path.removeprefix(_FOLDER): entry for entry in manifest.files if entry.path.startswith(_FOLDER)}
    return inside or {entry.path: entry for entry in manifest.files if not entry.path.startswith(ABOUT)}


def _there(draft: Draft, files: Mapping[str, FileEntry], place: Place) -> tuple[Path | None, str]:
    """A kept folder that holds the draft, all of it; and what is wrong with one that should."""
    tampered = ""
    for folder in place.kept():
        record = Pulled.read(folder)
        if record is None:
            tampered = tampered or f"{RECORD}: it is not intact"
        elif record.digest == draft.digest:
            flaw = _flaw(folder, files)
            if flaw is None:
                return folder, tampered
            tampered = tampered or flaw
    return None, tampered


def _flaw(folder: Path, files: Mapping[str, FileEntry]) -> str | None:
    """What is wrong with a folder that should hold exactly these files."""
    for name, entry in files.items():
        flaw = pieces.damaged_file(folder / name, entry)
        if flaw is not None:
            return f"{name}: {flaw}"
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    foreign = sorted(name for name in found - {*files, RECORD} if not any(part[0] == "." for part in name.split("/")))
    return f"{foreign[0]}: it is no part of the draft" if foreign else None


def _fetch(entry: FileEntry, path: Path, manifest: Manifest, store: Store) -> None:
    """Bring one file from the store to `path`, checked and flushed to the disk."""
    prefix = f"{manifest.kind}/{manifest.key}/{manifest.attempt}"
    path.parent.mkdir(parents=True, exist_ok=True)
    flaw = None
    for _ in range(_LOOKS):
        source = store.backend.fetch(prefix, [entry.path], refetch=True) / entry.path
        try:
            if store.shared:
                shutil.move(source, path)
            else:
                shutil.copyfile(source, path)
        except FileNotFoundError:
            path.unlink(missing_ok=True)
        flaw = pieces.damaged_file(path, entry)
        if flaw is None:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            return
    raise PulledDraftDamaged(
        f"A draft is damaged in the store: {flaw}.",
        where=f"{store.backend.location}/{manifest.kind}/{manifest.key}/{entry.path}",
        remedy="What was pulled before stays. Run the draft's recipe, which makes it again, or roll back.",
    )


def _damaged(draft: Draft, file: str, flaw: str) -> PulledDraftDamaged:
    return PulledDraftDamaged(
        f"The store has no whole draft {draft.digest[:12]}: {file} {flaw}.",
        where=f"{draft.kind}/{draft.key}/{file}",
        remedy="What was pulled before stays. Run the draft's recipe, which makes it again, or roll back.",
    )


def _record(draft: Draft, folder: Path, store: Store, now: Callable[[], datetime], *, new: bool) -> Pulled:
    """What is said of the draft in its folder; as it was if it has not changed."""
    known = Pulled.read(folder)
    same = known is not None and not new
    held = Pulled(
        format=FORMAT,
        model=draft.model,
        version=draft.version,
        kind=draft.kind,
        key=draft.key,
        digest=draft.digest,
        source=store.backend.location,
        since=known.since if known is not None and same else now().isoformat(timespec="seconds"),
        hook_exit=known.hook_exit if known is not None and same else None,
    )
    if held != known:
        held.write(folder)
    return held


def _same_target(manifest: Manifest, target: Path, memo: Path | None) -> bool:
    """Whether the manifest says by a fingerprint that the draft is this target's; False where it says nothing of one.

    Raises:
        OtherTarget: it is another target's.
    """
    recorded = manifest.parents.get("target")
    if recorded is None:
        return False
    fingerprints = Fingerprints(memo)
    found = fingerprints.files(model_files(target), within=target)
    fingerprints.save()
    if found != recorded.digest:
        raise OtherTarget(
            f"The draft was trained for target {recorded.digest[:12]}, not {found[:12]}.",
            where=str(target),
            remedy="Name the target that it was trained for, with all of its files (weights, config, tokenizer), "
            "or pull another draft.",
        )
    return True


def check_config(folder: Path, target: Path) -> None:
    """Compare shape and tokenizer, as the draft's config.json has them, with the target's.

    Raises:
        OtherTarget: a field, or the tokens, differ.
    """
    from deepspec.drafts.files.config_json import CONFIG_FILE, check_fits, read_draft_config
    from deepspec.targets.directory import read_spec

    try:
        check_fits(read_draft_config(folder), read_spec(target), folder)
    except IncompatibleDraft as error:
        raise OtherTarget(error.what, where=f"{target}/{CONFIG_FILE}", remedy=error.remedy) from error
