"""Bench "decode": the batched engine against a loop over single requests, and against plain decoding in itself.

All sides decode the same prompts to the same length, without stop tokens, in turns. The reference is `simple_loop`. The
step table tells what a step takes per batch: on a CPU verification is not free once a batch has some rows.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from deepspec.bench import measuring
from deepspec.bench import pair as pairs
from deepspec.bench.simple_loop import SimpleLoop
from deepspec.decoding.completion import Completion
from deepspec.decoding.config import Sampling
from deepspec.decoding.engine import Engine, StepTimes
from deepspec.errors import RecipeError

_ROUND_OF_REQUESTS = 2  # a batch is filled so often


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sizes of this bench."""
    pairs.add_arguments(parser)
    parser.add_argument("--batch", type=measuring.positive, default=16, help="rows of the larger batch (%(default)s)")
    parser.add_argument("--requests", type=measuring.positive, default=4, help="of one row (%(default)s)")
    parser.add_argument("--max-new-tokens", type=measuring.positive, default=96, help="of each (%(default)s)")


class _Sides:
    """The sides of the bench, by name; each decodes and notes its tokens, seconds and steps."""

    def __init__(self, options: argparse.Namespace) -> None:
        pair = pairs.load(options, needs_draft=True)
        if pair.drafter is None:
            raise RecipeError(
                "no draft is given.", where="--draft", remedy="Name a draft, or leave out what needs one."
            )
        longest = max(map(len, pair.prompts)) + options.max_new_tokens
        if longest > pair.target.spec.max_position_embeddings:
            raise RecipeError(
                f"prompts and answers take {longest} positions, the target has "
                f"{pair.target.spec.max_position_embeddings}.",
                where="--max-new-tokens",
                remedy="Lower --max-new-tokens, or give shorter prompts.",
            )
        self._pair = pair
        self._options = options
        self._sampling = Sampling(temperature=options.temperature)
        self._loop = SimpleLoop(
            pair.target.spec.path,
            pair.drafter,
            temperature=options.temperature,
            device=options.device,
            dtype=pair.target.dtype,
        )
        self.steps: dict[str, list[StepTimes]] = {}
        self.rates: dict[str, list[float]] = {}
        self.tau: dict[str, float] = {}
        self.runs: dict[str, Callable[[], Any]] = {"reference": self._simple}
        batches = [1]
        while batches[-1] < options.batch:
            batches.append(min(batches[-1] * 4, options.batch))
        self.batches = tuple(batches)
        for rows in batches:
            self.runs[f"plain {rows}"] = self._engine(rows, speculative=False)
            self.runs[f"ours {rows}"] = self._engine(rows, speculative=True)

    def _simple(self) -> None:
        options, prompts = self._options, self._pair.prompts
        started, rounds, tokens = time.perf_counter(), 0, 0
        for index in range(options.requests):
            output, count = self._loop.decode(prompts[index % len(prompts)], options.max_new_tokens)
            rounds, tokens = rounds + count, tokens + len(output)
        measuring.finish(options.device)
        self._note("reference", tokens, time.perf_counter() - started)
        self.tau["reference"] = (tokens - options.requests) / rounds if rounds else 1.0

    def _engine(self, rows: int, *, speculative: bool) -> Callable[[], None]:
        name = f"{'ours' if speculative else 'plain'} {rows}"
        steps = self.steps[name] = []
        engine = Engine(
            self._pair.target,
            self._pair.drafter if speculative else None,
            rows=rows,
            sampling=self._sampling,
            stop_ids=(),
            exact_times=True,
            on_step=steps.append,
        )
        count = self._options.requests if rows == 1 else rows * _ROUND_OF_REQUESTS

        def run() -> None:
            steps.clear()
            started = time.perf_counter()
            found = list(engine.run(self._pair.requests(count, self._options.max_new_tokens)))
            measuring.finish(self._options.device)
            self._note(name, sum(len(one.output_ids) for one in found), time.perf_counter() - started)
            self.tau[name] = _tau(found)

        return run

    def _note(self, name: str, tokens: int, seconds: float) -> None:
        self.rates.setdefault(name, []).append(tokens / seconds)

    def rate(self, name: str) -> float:
        """Median tokens per second, the first run left out."""
        return statistics.median(self.rates[name][1:])

    def milliseconds(self, rows: int) -> dict[str, float]:
        """Medians over the last run's steps of full batches."""

        def of(side: str, part: str) -> float:
            steps = [step for step in self.steps[f"{side} {rows}"] if step.rows == rows]
            seconds: list[float] = [getattr(step, part) for step in steps]
            return round(1000 * statistics.median(seconds), 3)

        return {"plain": of("plain", "seconds"), "verify": of("ours", "verify"), "draft": of("ours", "draft")}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The bench's document."""
    sides = _Sides(options)
    measuring.alternate(sides.runs, repeat=options.repeat, device=options.device)
    last = sides.batches[-1]
    rates = {name: round(sides.rate(name), 1) for name in sides.runs}
    ours = {f"batch{rows}_tokens_per_second": rates[f"ours {rows}"] for rows in sides.batches}
    plain = {f"plain_batch{rows}_tokens_per_second": rates[f"plain {rows}"] for rows in sides.batches}
    return {
        "bench": "decode",
        "device": measuring.device_name(options.device),
        "sizes": {
            "batch": last,
            "requests": options.requests,
            "max_new_tokens": options.max_new_tokens,
            "temperature": options.temperature,
            "threads": torch.get_num_threads(),
            "repeat": options.repeat,
        },
        "ours": {**ours, **plain, "tau": round(sides.tau["ours 1"], 4)},
        "reference": {"tokens_per_second": rates["reference"], "tau": round(sides.tau["reference"], 4)},
        "ratio": {
            "batch1_to_simple_loop": measuring.ratio(rates["ours 1"], rates["reference"]),
            f"batch{last}_to_simple_loop": measuring.ratio(rates[f"ours {last}"], rates["reference"]),
            "speedup_over_plain_batch1": measuring.ratio(rates["ours 1"], rates["plain 1"]),
            f"speedup_over_plain_batch{last}": measuring.ratio(rates[f"ours {last}"], rates[f"plain {last}"]),
        },
        "step_milliseconds": {str(rows): sides.milliseconds(rows) for rows in sides.batches},
    }


def lines(document: Mapping[str, Any]) -> list[list[str]]:
    """See `Bench.lines`."""
    ours, ratio = document["ours"], document["ratio"]
    rows = [["batch", "tokens/s", "plain", "plain step ms", "verify ms", "draft ms"]]
    for batch, step in document["step_milliseconds"].items():
        rates = [f"{ours[f'{kind}batch{batch}_tokens_per_second']:.0f}" for kind in ("", "plain_")]
        rows.append([batch, *rates, *(f"{step[part]:.2f}" for part in ("plain", "verify", "draft"))])
    rows.append(["simple loop", f"{document['reference']['tokens_per_second']:.0f}", "", "", "", ""])
    rows += [[name.replace("_", " "), f"{value:.2f}", "", "", "", ""] for name, value in ratio.items()]
    return rows


def _tau(completions: list[Completion]) -> float:
    rounds = [one for completion in completions for one in completion.rounds]
    return sum(one.committed for one in rounds) / len(rounds) if rounds else 1.0
