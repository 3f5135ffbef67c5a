"""How plain, fixed-length and scheduled decoding compare under load: the paper's Figure 8.

First the costs of steps are profiled on this machine, then every way decodes the same requests at every concurrency, in
turns and several times. Throughput is all tokens over wall time, prompts included; a request's speed is its tokens over
the time from its prefill to its end. Everything here but the tokens depends on the machine and on its other work.

Legend: R rows, K draft positions, N rounds. Source: the DSpark paper (arXiv 2607.05147).
"""

import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from deepspec.data.responses.requests import GenerationRequest
from deepspec.decoding.completion import Completion
from deepspec.decoding.engine import Engine
from deepspec.decoding.profiling import loads_up_to, measured_costs
from deepspec.decoding.scheduler import PrefixScheduler, Scheduler, modes_by_load, survival
from deepspec.decoding.step_costs import StepCosts
from deepspec.drafts.algorithm import Drafter
from deepspec.evaluation.answering import requests_for
from deepspec.evaluation.calibration.results import CalibrationResult
from deepspec.evaluation.config import Config
from deepspec.evaluation.intervals import student_interval
from deepspec.evaluation.prompts.selection import EncodedPrompt
from deepspec.evaluation.results import DecodingMode, LoadPoint, LoadRun, LoadTest, StepSeconds
from deepspec.progress import SILENT, Progress
from deepspec.targets.model import Target

_FEWEST_REQUESTS = 4
_PROFILE_TURNS = 3


@dataclass(frozen=True)
class Calibrated:
    """What the scheduler has to know of a draft's confidences.

    Attributes:
        temperatures: of each position.
        confidence_NK: raw, of held-out rounds with full proposals: what loads are judged by.
    """

    temperatures: tuple[float, ...]
    confidence_NK: Sequence[Sequence[float]]

    @classmethod
    def of(cls, calibration: CalibrationResult, confidences: Iterable[Sequence[float]]) -> "Calibrated | None":
        """From a calibration and the confidences of its rounds; None for a draft without a confidence head."""
        full = [of_round for of_round in confidences if len(of_round) == len(calibration.temperatures)]
        return cls(calibration.temperatures, full) if calibration.applicable and full else None

    @classmethod
    def read(cls, folder: Path) -> "Calibrated | None":
        """From the folder of the calibrate stage; None for a draft without a confidence head."""
        file = folder / "calibration.json"
        calibration = CalibrationResult.from_json(json.loads(file.read_text(encoding="utf-8")), where=str(file))
        rounds = pq.read_table(folder / "rounds.parquet", columns=["confidence"])
        return cls.of(calibration, rounds["confidence"].to_pylist())


def load_experiment(
    config: Config,
    *,
    target: Target,
    drafter: Drafter,
    prompts: Sequence[EncodedPrompt],
    calibrated: Calibrated | None,
    progress: Progress = SILENT,
) -> LoadTest | None:
    """Profile, and decode at each of `config.load.concurrency`.

    Args:
        config: concurrencies, repeats, sampling.
        target, drafter: what decodes.
        prompts: of any benchmarks; used again where more are needed.
        calibrated: of the draft; None leaves the scheduled way out.
        progress: advances by runs.

    Returns:
        None where the recipe asks for no concurrency, or there is no prompt.
    """
    load = config.load
    if not load.concurrency or not prompts:
        return None
    most = max(load.concurrency)
    loads = loads_up_to(most, drafter.num_draft_tokens)
    num_modes = 2 if calibrated is None else 3
    progress.start(len(loads) * _PROFILE_TURNS + len(load.concurrency) * load.num_repeats * num_modes, "runs")
    asked = requests_for(config, _mid_answer_prompts(prompts, load.max_new_tokens), 1)
    costs = measured_costs(
        target, drafter, asked, loads, sampling=config.sampling, num_turns=_PROFILE_TURNS, on_load=progress.advance
    )
    modes: dict[DecodingMode, tuple[Drafter | None, Scheduler | None]] = {
        "plain": (None, None),
        "fixed": (drafter, None),
    }
    by_rows: Mapping[int, str] = {}
    if calibrated is not None:
        scheduler = scheduler_for(costs, calibrated, [one.rows for one in loads], seed=config.seed)
        by_rows = scheduler.modes
        modes["scheduled"] = (drafter, scheduler)
    points = []
    for concurrency in load.concurrency:
        runs: dict[DecodingMode, list[_Run]] = {mode: [] for mode in modes}
        order = list(modes)
        requests = _requests(config, prompts, concurrency)
        for _ in range(load.num_repeats):
            for mode in order:
                engine = Engine(
                    target,
                    modes[mode][0],
                    scheduler=modes[mode][1],
                    rows=concurrency,
                    sampling=config.sampling,
                    exact_times=False,
                )
                runs[mode].append(_timed(engine, requests))
                progress.advance()
            order.append(order.pop(0))  # the first of this repeat is the last of the next
        points.append(LoadPoint(concurrency=concurrency, **{mode: _summary(found) for mode, found in runs.items()}))
    return LoadTest(
        modes=tuple(modes),
        repeats=load.num_repeats,
        max_new_tokens=load.max_new_tokens,
        threads=torch.get_num_threads(),
        device=_device_name(target.device),
        by_rows={str(rows): mode for rows, mode in by_rows.items()},
        most_rows=_most_rows(by_rows),
        points=tuple(points),
        costs=StepSeconds.model_validate(costs.to_json()),
    )


def _mid_answer_prompts(prompts: Sequence[EncodedPrompt], max_new_tokens: int) -> list[EncodedPrompt]:
    """Prompts as long as they are in the middle of an answer: a step costs more the longer its contexts are."""
    return [
        EncodedPrompt(
            prompt.id, tuple(islice(cycle(prompt.prompt_ids), len(prompt.prompt_ids) + max_new_tokens // 2)), ""
        )
        for prompt in prompts
    ]


def scheduler_for(costs: StepCosts, calibrated: Calibrated, rows: Sequence[int], *, seed: int) -> PrefixScheduler:
    """Algorithm 1 with measured costs and calibrated confidences, at the loads where choosing is worth it."""
    temperatures_K = torch.tensor(calibrated.temperatures, dtype=torch.float64)
    confidence_NK = torch.tensor(np.asarray(calibrated.confidence_NK))
    survival_NK = survival(confidence_NK, temperatures_K).numpy()
    return PrefixScheduler(
        costs, calibrated.temperatures, modes_by_load(costs, survival_NK, sorted(set(rows)), seed=seed)
    )


def _most_rows(by_rows: Mapping[int, str]) -> int | None:
    """The most rows that are drafted for; None if no load stops drafting."""
    if "none" not in by_rows.values():
        return None
    return max((rows for rows, mode in by_rows.items() if mode != "none"), default=0)


@dataclass(frozen=True)
class _Run:
    seconds: float
    completions: tuple[Completion, ...]


def _requests(config: Config, prompts: Sequence[EncodedPrompt], concurrency: int) -> list[GenerationRequest]:
    """Enough requests that rows are refilled, and that a single row works for a while."""
    wanted = max(concurrency * config.load.requests_per_row, _FEWEST_REQUESTS)
    chosen = [
        EncodedPrompt(f"{prompts[index % len(prompts)].id}/{index}", prompts[index % len(prompts)].prompt_ids, "")
        for index in range(wanted)
    ]
    return requests_for(config, chosen, config.load.max_new_tokens)


def _timed(engine: Engine, requests: Sequence[GenerationRequest]) -> _Run:
    started = time.perf_counter()
    found = tuple(engine.run(requests))
    return _Run(time.perf_counter() - started, found)


def _summary(runs: Sequence[_Run]) -> LoadRun:
    throughput = [sum(len(one.output_ids) for one in run.completions) / run.seconds for run in runs]
    speeds = [
        statistics.mean(len(one.output_ids) / one.elapsed_seconds for one in run.completions if one.elapsed_seconds)
        for run in runs
    ]
    rounds = [one for completion in runs[0].completions for one in completion.rounds]
    return LoadRun(
        tokens_per_second=statistics.mean(throughput),
        ci95=student_interval(throughput),
        request_tokens_per_second=statistics.mean(speeds),
        request_ci95=student_interval(speeds),
        tau=sum(one.committed for one in rounds) / len(rounds) if rounds else None,
        mean_proposed=sum(one.proposed for one in rounds) / len(rounds) if rounds else None,
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
