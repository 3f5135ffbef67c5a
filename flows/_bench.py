"""The bench that needs a whole pipeline: what a run costs when everything is in the store already."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from deepspec.errors import RecipeError


def warm(recipe: str, home: Path, *, repeat: int) -> dict[str, Any]:
    """Wall time of the whole command, start of Python included, for a run of hits.

    Args:
        recipe: a recipe that has been run in this home.
        home: the home folder.
        repeat: how many runs.

    Returns:
        the bench's document: median and all `seconds`, `peak_rss_bytes` and the number of stages.

    Raises:
        RecipeError: not everything was a hit.
    """
    command = [sys.executable, "-m", "flows.cli", "run", recipe]
    seconds = []
    record: dict[str, Any] = {}
    for _ in range(repeat):
        started = time.perf_counter()
        done = subprocess.run(command, env={**os.environ, "DEEPSPEC_HOME": str(home)}, capture_output=True, check=False)
        seconds.append(time.perf_counter() - started)
        record = json.loads((home / "last-run.json").read_text(encoding="utf-8")) if done.returncode == 0 else {}
        if record.get("status") != "no_change":
            raise RecipeError(
                f"a run of {recipe} was no run of hits (exit code {done.returncode}).",
                where=str(home),
                remedy=f"Run `deepspec run {recipe}` first.",
            )
    return {
        "bench": "warm",
        "device": "cpu",
        "sizes": {"recipe": recipe, "stages": len(record["stages"]), "repeat": repeat},
        "ours": {
            "seconds": round(statistics.median(seconds), 3),
            "all_seconds": [round(value, 3) for value in seconds],
            "peak_rss_bytes": record["peak_rss_bytes"],
        },
    }
