"""Fails if files import each other in a circle: `python -m tests.import_circles`, a part of `make lint`.

import-linter's contract `acyclic_siblings` compares files and folders that lie next to each other. This adds the one
kind of circle that it cannot see: a package's `__init__.py` imports a file of the package, which imports the package.
Imports inside functions, and those for type checking, count too.
"""

import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]


def circles() -> list[list[str]]:
    """Modules that reach each other through imports, one sorted list per circle."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    # No cache: import-linter's own is of graphs with other settings, and takes for unchanged what it has seen itself.
    graph = grimp.build_graph(*settings["root_packages"], cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    reached = {module: _reached_from(module, imports) for module in imports}
    groups = {
        tuple(sorted(other for other in found if module in reached[other]))
        for module, found in reached.items()
        if module in found
    }
    return [list(group) for group in sorted(groups)]


def _reached_from(module: str, imports: Mapping[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = list(imports[module])
    while waiting:
        found = waiting.pop()
        if found not in reached:
            reached.add(found)
            waiting += imports[found]
    return reached


def main() -> int:
    """Print the circles; the exit code."""
    found = circles()
    for circle in found:
        print("These files import each other in a circle: " + ", ".join(circle))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
