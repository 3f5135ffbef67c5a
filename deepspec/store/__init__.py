"""Content-addressed artifacts: immutable results under the hash of everything that made them.

    store = open_store("folder")
    key = artifact_key(ingredients)
    artifact = store.find("tokens", key)          # None, or a complete, valid artifact
    with store.write("tokens", ingredients, parents) as writing:
        (writing.directory / "train.parquet").write_bytes(...)
    writing.artifact.directory()                  # verified local files

    tasks.runtime.stage ──► keys                  what a result is known by
                        └─► artifacts ──► writing, manifest      checked, then recorded
                                │   └───► artifact ──► reading   one artifact's files, checked piece by piece
                                └───────► backends               a folder, or a bucket
    states.reader ────────► reading                              a piece at a time, where the files are
    tasks.runtime.execute ► lease                                what a live run protects from collectors
    the command line ─────► gc, copy_store ──► lease             collect, copy

`layout.py` says what lies where, `records.py` seals small records, `fingerprint.py` and `download_inputs.py` are how
inputs from outside enter. Nothing here knows of flows, models or tracking servers.
"""

from deepspec.store.artifact import Artifact
from deepspec.store.artifacts import LookUp, Store, Writing, open_store
from deepspec.store.backends.contract import Backend
from deepspec.store.keys import Ingredients, artifact_key, canonical, digest_of
from deepspec.store.layout import Stat
from deepspec.store.manifest import Manifest, Parent

__all__ = [
    "Artifact",
    "Backend",
    "Ingredients",
    "LookUp",
    "Manifest",
    "Parent",
    "Stat",
    "Store",
    "Writing",
    "artifact_key",
    "canonical",
    "digest_of",
    "open_store",
]
