"""What a draft is, apart from its name in the store: its weights, and all that it was made from.

Both are read from manifests, which stay readable where an artifact's files are damaged or gone.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from deepspec.registry.entries import DraftIdentity, DraftReference
from deepspec.store import Artifact, Store
from deepspec.store.keys import digest_of
from deepspec.store.manifest import Manifest

_WEIGHTS = ".safetensors"
TRAINED, IMPORTED = "train", "import"
DRAFT_KINDS = (TRAINED, IMPORTED)
"""Kinds of the artifacts that are drafts: what was trained here, and what others have published."""


def identity_of(store: Store, draft: DraftReference | Artifact) -> DraftIdentity:
    """A draft's identity; where its manifest is gone, its digest alone.

    Costs one small read for each artifact that the draft was made from.
    """
    manifest = (
        draft.manifest if isinstance(draft, Artifact) else manifest_of(store, draft.kind, draft.key, draft.digest)
    )
    if manifest is None:
        return DraftIdentity(digest=draft.digest)
    return DraftIdentity(digest=draft.digest, weights=weights_of(manifest), recipe=recipe_of(store, manifest))


def is_from_outside(made: Artifact) -> bool:
    """Whether an artifact is a draft that was not trained here, or was started from one: its data are not known."""
    started_from = made.manifest.parents.get("init")
    return made.kind == IMPORTED or (started_from is not None and started_from.kind != TRAINED)


def weights_of(manifest: Manifest) -> str | None:
    """SHA-256 of the file with a draft's weights; of several files, of their list; None: there is none."""
    files = sorted((entry.path, entry.sha256) for entry in manifest.files if entry.path.endswith(_WEIGHTS))
    if len(files) == 1:
        return files[0][1]
    return hashlib.sha256(json.dumps(files, separators=(",", ":")).encode()).hexdigest() if files else None


def recipe_of(store: Store, manifest: Manifest) -> str | None:
    """SHA-256 over all that an artifact was made from and with, without the versions of stages.

    So it outlives an upgrade which makes the same again with other bytes. What entered from outside counts by its
    content, and a draft that training was started from by its weights.

    Returns:
        None if a manifest on the way is gone.
    """
    known: dict[tuple[str, str], str | None] = {}

    def recipe(made: Manifest) -> str | None:
        ingredients: Mapping[str, Any] = made.ingredients
        parents: dict[str, str] = {}
        for name, parent in made.parents.items():
            if parent.key is None:
                parents[name] = parent.digest
                continue
            place = parent.kind, parent.key
            if place not in known:
                found = manifest_of(store, *place, parent.digest)
                known[place] = (
                    None if found is None else weights_of(found) if found.kind in DRAFT_KINDS else recipe(found)
                )
            one = known[place]
            if one is None:
                return None
            parents[name] = one
        return digest_of({"stage": ingredients["stage"], "sections": ingredients["sections"], "parents": parents})

    return recipe(manifest)


def manifest_of(store: Store, kind: str, key: str, digest: str) -> Manifest | None:
    """The manifest of what has this digest, also of a damaged one."""
    found = (store.manifest(kind, key, number) for number in reversed(store.numbers(kind, key)))
    return next((manifest for manifest in found if manifest is not None and manifest.digest == digest), None)
