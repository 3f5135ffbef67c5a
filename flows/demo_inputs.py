"""The demo's own inputs: a corpus, a tokenizer and a small target, made because nothing may be fetched.

    demo_corpus → demo_tokenizer → demo_target

What comes out is copied into `<home>/<name>/`, where the recipe finds it like anybody's own target and data; the
retraining flow knows nothing of it.
"""

import filecmp
import shutil
from collections.abc import Mapping
from pathlib import Path

from deepspec.demo.config import Config
from deepspec.store import Artifact
from tasks._run import Run
from tasks._stage import Reference
from tasks.demo_corpus import demo_corpus
from tasks.demo_target import demo_target
from tasks.demo_tokenizer import demo_tokenizer


def demo_inputs(run: Run[Config]) -> Mapping[str, Reference]:
    """Make the inputs of a demo recipe.

    Args:
        run: the run; `run.recipe` is the `Config` of `deepspec.demo`.

    Returns:
        the corpus (conversations and held-out benchmarks) and the target's folder. Requires nothing.
    """
    corpus = demo_corpus(run)
    tokenizer = demo_tokenizer(run, corpus=corpus)
    target = demo_target(run, corpus=corpus, tokenizer=tokenizer)
    folder = run.home / run.section("name")
    for name, artifact in (("corpus", corpus), ("target", target)):
        if isinstance(artifact, Artifact):
            _copy(artifact, folder / name)
    return {"corpus": corpus, "target": target}


def _copy(artifact: Artifact, folder: Path) -> None:
    """Make `folder` hold exactly the artifact's files; equal ones are left alone."""
    source = artifact.directory()
    wanted = {entry.path for entry in artifact.manifest.files}
    for present in folder.rglob("*") if folder.is_dir() else ():
        if present.is_file() and present.relative_to(folder).as_posix() not in wanted:
            present.unlink()
    for name in sorted(wanted):
        target = folder / name
        if target.is_file() and filecmp.cmp(source / name, target, shallow=False):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.copyfile(source / name, temporary)
        temporary.replace(target)
