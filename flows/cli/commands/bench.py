"""Benches behind the command line: those of the library, and the one that needs a whole pipeline."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from deepspec.errors import RecipeError
from deepspec.record import RunRecord
from deepspec.store.records import JsonRecord
from tasks.runtime.record.run_record import read_record


class WarmSizes(JsonRecord):
    """What a warm run is of."""

    recipe: str
    stages: int
    repeat: int


class WarmTimes(JsonRecord):
    """Wall time of a warm run: the median, and of each repeat; and its memory."""

    seconds: float
    all_seconds: tuple[float, ...]
    peak_rss_bytes: int


class WarmBench(JsonRecord):
    """The bench's document."""

    bench: str
    device: str
    sizes: WarmSizes
    ours: WarmTimes


_DECODE_A_PAIR = ("decode", "sps")


def library(name: str, arguments: Sequence[str], home: Path) -> None:
    """Run a bench of `deepspec.bench`; one that decodes takes the last run's target, draft and prompts by default."""
    from deepspec.bench.__main__ import main as run_bench

    chosen = any(argument.split("=")[0] in ("--pair", "--target", "-h", "--help") for argument in arguments)
    if name in _DECODE_A_PAIR and not chosen:
        arguments = [*_pair_of_last_run(home), *arguments]
    run_bench([name, *arguments], command="deepspec bench")


def _pair_of_last_run(home: Path) -> list[str]:
    """Options that name what the last run decoded with."""
    from deepspec.home import store_of
    from deepspec.registry.identity import DRAFT_KINDS
    from deepspec.store import Artifact

    record = read_record(home, None)
    made: dict[str, Artifact] = {}
    if record is not None:
        store = store_of(home, record.store)
        for stage in record.stages:
            what = "draft" if stage.kind in DRAFT_KINDS else stage.name
            artifact = store.find(stage.kind, stage.key) if what in ("draft", "evaluate") else None
            if artifact is not None:
                made.setdefault(what, artifact)
    if record is None or len(made) < 2 or record.target is None:
        raise RecipeError(
            f"no run in {home} has evaluated a draft yet.",
            where="--pair",
            remedy="Run `deepspec demo`, or name a folder with `target` and `draft`.",
        )
    draft, answers = made["draft"].directory() / "draft", made["evaluate"].path("answers.parquet")
    return ["--target", record.target, "--draft", str(draft), "--prompts", str(answers)]


def warm(recipe: str, home: Path, *, repeat: int) -> WarmBench:
    """Wall time of the whole command, start of Python included, for a run of hits.

    Args:
        recipe: a recipe that has been run in this home.
        home: the home folder.
        repeat: how many runs.

    Raises:
        RecipeError: not everything was a hit.
    """
    command = [sys.executable, "-m", "flows.cli.main", "run", recipe]
    seconds = []
    record: RunRecord | None = None
    for _ in range(repeat):
        started = time.perf_counter()
        done = subprocess.run(command, env={**os.environ, "DEEPSPEC_HOME": str(home)}, capture_output=True, check=False)
        seconds.append(time.perf_counter() - started)
        record = read_record(home) if done.returncode == 0 else None
        if record is None or record.status != "no_change":
            raise RecipeError(
                f"a run of {recipe} was no run of hits (exit code {done.returncode}).",
                where=str(home),
                remedy=f"Run `deepspec run {recipe}` first.",
            )
    if record is None:
        raise ValueError("repeat must be at least 1")
    return WarmBench(
        bench="warm",
        device="cpu",
        sizes=WarmSizes(recipe=recipe, stages=len(record.stages), repeat=repeat),
        ours=WarmTimes(
            seconds=round(statistics.median(seconds), 3),
            all_seconds=tuple(round(value, 3) for value in seconds),
            peak_rss_bytes=record.peak_rss_bytes,
        ),
    )
