"""The demo's own inputs: a corpus, a tokenizer and a small target, made because nothing may be fetched.

    demo_corpus → demo_tokenizer → demo_target

What comes out is copied into `<home>/<name>/`, where the recipe finds it like anybody's own target and data; the
retraining flow knows nothing of it.
"""

import filecmp
import json
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

_SOURCES = "made-from.json"
"""Beside the copies: which artifacts they were made from. Every run of the recipe writes it anew: no format version."""


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
    made = {
        name: artifact for name, artifact in (("corpus", corpus), ("target", target)) if isinstance(artifact, Artifact)
    }
    if not run.dry and made:
        folder = run.home / run.section("name")
        restored = [path for name, artifact in made.items() for path in _copy(artifact, folder / name)]
        if restored:
            more = f" and {len(restored) - 1} more" if len(restored) > 1 else ""
            run.display.say(
                f"Warning: {restored[0]}{more} had been changed and was restored. To run on inputs of your own, copy "
                "them elsewhere and name them: --set data.source=… --set target.path=…"
            )
        sources = {name: [artifact.kind, artifact.key] for name, artifact in made.items()}
        sources |= {"tokenizer": [tokenizer.kind, tokenizer.key]} if isinstance(tokenizer, Artifact) else {}
        (folder / _SOURCES).write_text(json.dumps(sources, indent=1) + "\n", encoding="utf-8")
    return {"corpus": corpus, "target": target}


def made_inputs(home: Path) -> set[tuple[str, str]]:
    """(kind, key) of what the inputs in a home folder are copies of: a collector must leave them."""
    return {
        (str(kind), str(key))
        for file in home.glob(f"*/{_SOURCES}")
        for kind, key in json.loads(file.read_text(encoding="utf-8")).values()
    }


def _copy(artifact: Artifact, folder: Path) -> list[Path]:
    """Make `folder` hold exactly the artifact's files; returns those that were there and had been changed."""
    source = artifact.directory()
    wanted = {entry.path for entry in artifact.manifest.files}
    for present in folder.rglob("*") if folder.is_dir() else ():
        if present.is_file() and present.relative_to(folder).as_posix() not in wanted:
            present.unlink()
    known = _artifact_of(folder) == [artifact.kind, artifact.key]
    restored = []
    for name in sorted(wanted):
        target = folder / name
        if target.is_file() and filecmp.cmp(source / name, target, shallow=False):
            continue
        if known:
            restored.append(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.copyfile(source / name, temporary)
        temporary.replace(target)
    return restored


def _artifact_of(folder: Path) -> list[str] | None:
    """Of which artifact `folder` was made a copy, if it was."""
    try:
        sources = json.loads((folder.parent / _SOURCES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = sources.get(folder.name)
    return list(found) if found else None
