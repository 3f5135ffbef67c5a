"""Content-addressed artifacts: immutable results under the hash of everything that made them.

    store = open_store("folder")
    key = artifact_key(ingredients)
    artifact = store.find("tokens", key)          # None, or a complete, valid artifact
    with store.write("tokens", ingredients, parents) as writing:
        (writing.directory / "train.parquet").write_bytes(...)
    writing.artifact.directory()                  # verified local files

`keys.py` says what a key is, `manifest.py` what is recorded, `artifacts.py` how one is written, found and read,
`layout.py` what lies where, `backends/contract.py` the few operations a place must offer, `backends/local.py` and
`backends/s3.py` the places that do, `backends/s3_location.py` how object storage is addressed, `reading/files.py` how
an artifact is read a piece at a time, `lease.py` how a live run says so, `gc.py` what is collected, `fingerprint.py`
how inputs from outside enter. Nothing here knows of flows, models or tracking servers.
"""

from deepspec.store.artifacts import Artifact, Store, Writing, open_store
from deepspec.store.backends.contract import Backend
from deepspec.store.keys import Ingredients, artifact_key, canonical, digest_of
from deepspec.store.layout import Stat
from deepspec.store.manifest import Manifest, Parent

__all__ = [
    "Artifact",
    "Backend",
    "Ingredients",
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
