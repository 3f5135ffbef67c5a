"""Bench "sps": the steps per second that the prefix scheduler reckons with, on this machine.

`table` is the paper's: steps per second by the tokens B of a verification, drafting included, made monotone.
`drafting_seconds` has what the scheduler uses: by rows and tokens. Without a draft the table is that of plain steps.
"""

import argparse
from collections.abc import Mapping
from typing import Any

import torch

from deepspec.bench import measuring
from deepspec.bench import pair as pairs
from deepspec.decoding.config import Sampling
from deepspec.decoding.profiling import loads_up_to, measured_costs
from deepspec.decoding.step_costs import StepCosts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sizes of this bench."""
    pairs.add_arguments(parser)
    parser.add_argument("--rows", type=measuring.positive, default=64, help="most rows decoded at once (%(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The bench's document."""
    pair = pairs.load(options, needs_draft=False)
    num_draft_tokens = pair.drafter.num_draft_tokens if pair.drafter is not None else 0
    loads = loads_up_to(options.rows, num_draft_tokens)
    if pair.drafter is None:
        loads = [load for load in loads if load.length is None]
    costs = measured_costs(
        pair.target,
        pair.drafter,
        pair.requests(len(pair.prompts), 1),
        loads,
        sampling=Sampling(temperature=options.temperature),
        num_turns=options.repeat,
    )
    return {
        "bench": "sps",
        "device": measuring.device_name(options.device),
        "sizes": {
            "rows": options.rows,
            "num_draft_tokens": num_draft_tokens,
            "context": max(map(len, pair.prompts)),
            "threads": torch.get_num_threads(),
            "repeat": options.repeat,
        },
        "table": {load: round(rate, 3) for load, rate in costs.table().items()},
        **costs.to_json(),
    }


def lines(document: Mapping[str, Any]) -> list[list[str]]:
    """See `Bench.lines`."""
    costs = StepCosts.from_json(document)
    rows = [["rows", "tokens", "step ms", "steps/s"]]
    for count, seconds in zip(costs.plain.loads, costs.plain.seconds, strict=True):
        rows.append([f"{count:g}", "plain", f"{1000 * seconds:.2f}", f"{1 / seconds:.1f}"])
        curve = costs.drafting.get(int(count))
        for tokens, taken in zip(curve.loads, curve.seconds, strict=True) if curve is not None else ():
            rows.append(["", f"{tokens:g}", f"{1000 * taken:.2f}", f"{1 / taken:.1f}"])
    return rows
