"""What is checked of an artifact before it is published, and the list of its files."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from deepspec.errors import ArtifactError
from deepspec.store import layout
from deepspec.store.keys import Ingredients
from deepspec.store.manifest import FileEntry, Parent
from deepspec.store.reading import pieces


def check(kind: str, ingredients: Ingredients, parents: Mapping[str, Parent]) -> None:
    """Refuse what could be written, but then not be found, traced or collected.

    Raises:
        ArtifactError: `kind` cannot name artifacts, or `parents` are not those of the key.
    """
    if not layout.KIND.fullmatch(kind) or kind in layout.RESERVED:
        raise ArtifactError(f"{kind!r} is not a valid artifact kind.", remedy="Use a stage's name.")
    if {name: parent.digest for name, parent in parents.items()} != dict(ingredients.parents):
        # Lineage and collectors walk over the recorded parents, reuse over those of the key: they have to be the same.
        raise ArtifactError(
            f"The recorded parents {sorted(parents)} are not those of the key, {sorted(ingredients.parents)}.",
            where=kind,
            remedy="Make both from the same inputs.",
        )


def entries(staging: Path) -> Iterator[FileEntry]:
    """Every file of an attempt, by path; reads all of them.

    Raises:
        ArtifactError: something is neither a plain file nor a folder (a link's target may change or go), or a file is
            not what its suffix says.
    """
    files = {}
    for path in staging.rglob("*"):
        name = path.relative_to(staging).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ArtifactError("Only plain files can be published.", where=name, remedy="Copy what a link points to.")
        if any("\ud800" <= letter < "\ue000" for letter in name):
            raise ArtifactError("This file name is not valid Unicode.", where=ascii(name), remedy="Rename it.")
        if path.is_file():
            files[name] = path
    for name in sorted(files):
        yield pieces.describe(files[name], name)
