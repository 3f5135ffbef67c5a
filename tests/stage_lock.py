"""Asks, whenever code that a stage runs has changed, whether the stage's version must be bumped.

A stage's result is reused as long as its key is the same, and code is not in the key (a comment must not throw away a
day of training). So the lock file holds a hash of the sources of every stage's import closure beside its version:

    python -m tests.stage_lock --check     fails if sources changed and the lock does not know it
    python -m tests.stage_lock --write     after deciding: bump `version=` where the output changes, then write
"""

import ast
import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.runtime.stage import Stage

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "tests" / "golden" / "stage_lock.json"
_OURS = ("deepspec", "tasks")
# How things are shown, stored or reported decides nothing about a stage's output.
_LEFT_OUT = (
    "tasks.runtime.run",
    "tasks.runtime.stage",
    "tasks.runtime.references",
    "tasks.runtime.records",
    "tasks.runtime.display",
    "deepspec.account",
    "deepspec.store",
    "deepspec.registry",
    "deepspec.recipe",
)


def stages() -> "dict[str, Stage]":
    """Every stage of `tasks.stages`, by name."""
    from tasks.stages import STAGES

    return {stage.name: stage for stage in sorted(STAGES, key=lambda stage: stage.name)}


def closure(module: str) -> list[Path]:
    """Source files that `module` imports, directly or not, among ours; imports inside functions count."""
    found: dict[str, Path] = {}
    open_ = [module]
    while open_:
        name = open_.pop()
        path = _source(name)
        if path is None or name in found or name.startswith(_LEFT_OUT):
            continue
        found[name] = path
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                open_ += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                open_ += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [found[name] for name in sorted(found)]


def current() -> dict[str, dict[str, object]]:
    """Every stage's version and the hash of its closure's syntax trees (comments and layout do not count)."""
    lock: dict[str, dict[str, object]] = {}
    for name, stage in stages().items():
        whole = hashlib.sha256()
        for path in closure(stage.function.__module__):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            whole.update(path.relative_to(ROOT).as_posix().encode())
            whole.update(ast.dump(_without_docstrings(tree)).encode())
        lock[name] = {"version": stage.version, "sources": whole.hexdigest()}
    return lock


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _source(name: str) -> Path | None:
    if name.split(".", maxsplit=1)[0] not in _OURS:
        return None
    base = ROOT.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def main() -> int:
    """Check or write the lock."""
    now = current()
    if "--write" in sys.argv:
        LOCK.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return 0
    before = json.loads(LOCK.read_text(encoding="utf-8")) if LOCK.is_file() else {}
    changed = [name for name in now if now[name] != before.get(name)] + [name for name in before if name not in now]
    for name in changed:
        same = name in now and now[name]["version"] == before.get(name, {}).get("version")
        print(f"{name}: the code it runs has changed" + (", its version has not." if same else "."))
    if changed:
        print("Bump the version of the stages whose output changes for equal inputs, then `make golden`.")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
