"""A training objective without a model worth the name, for tests of the loop and of launches: it fits a small network.

Run as a program it is a training worker that knows the objective as `deepspec.toy:objective`.
"""

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

WIDTH = 6


def draw(*key: int) -> torch.Generator:
    seed = 0
    for part in key:
        seed = seed * 1_000_003 + part + 1
    return torch.Generator().manual_seed(seed % 2**62)


@dataclass
class Toy:
    """Documents are rows x -> y; a step takes `rows` of them, drawn by (seed, step, row), `split` per micro-batch."""

    num_steps: int = 12
    rows: int = 8
    split: int = 8
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    dtype: torch.dtype = torch.float32
    tau: Mapping[int, float] = field(default_factory=dict)
    nan_at: int | None = None
    kill_at: int | None = None
    crash_at: int | None = None
    sleep_seconds: float = 0.0
    units: Mapping[str, str] = field(default_factory=lambda: {"error": "units"})
    memory_fields: tuple[str, ...] = ()
    exported: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.module = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, 1))
        self.module.register_buffer("frequencies", torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.module.register_parameter("frozen", self.frozen)
        with torch.no_grad():
            for index, parameter in enumerate(self.module.parameters()):
                if parameter.requires_grad:
                    parameter.normal_(0, 0.3, generator=draw(self.seed, 999, index))

    def micro_batches(self, step: int) -> Sequence[tuple[int, range]]:
        if step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == self.crash_at:
            raise ZeroDivisionError("the toy broke")
        time.sleep(self.sleep_seconds)
        pieces = [range(start, min(start + self.split, self.rows)) for start in range(0, self.rows, self.split)]
        return [(step, piece) for piece in pieces[self.rank :: self.world_size]]

    parts = ()

    def dummy_micro_batch(self, step: int) -> tuple[int, range]:
        return step, range(1)

    def num_tokens(self, micro_batch: tuple[int, range]) -> int:
        return len(micro_batch[1])

    def totals(self, micro_batch: tuple[int, range]) -> dict[str, float]:
        return {"rows": float(len(micro_batch[1]))}

    def loss(
        self, module: nn.Module, micro_batch: tuple[int, range], totals: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        step, rows = micro_batch
        x_NW = torch.stack([torch.randn(WIDTH, generator=draw(self.seed, step, row)) for row in rows])
        y_N1 = x_NW.sin().sum(1, keepdim=True)
        error_N1 = module(x_NW.to(self.dtype)).float() - y_N1
        loss = error_N1.square().sum() / totals["rows"]
        if step == self.nan_at:
            loss = loss * float("nan")
        error = error_N1.detach().abs().sum().double()
        return loss, {"error": torch.stack((error, torch.full_like(error, len(rows))))}

    def validate(self, step: int) -> dict[str, float]:
        return {"tau": self.tau[step]} if self.tau else {}

    def export(self, out: Path) -> dict[str, Any]:
        self.exported.append(1)
        safetensors.torch.save_file(
            {k: v.float() for k, v in self.module.state_dict().items()}, out / "toy.safetensors"
        )
        return {"files": ["toy.safetensors"]}


def objective(job: Any, placement: Any) -> Toy:
    if job.config.get("refuse"):
        from deepspec.errors import DataError

        raise DataError("The toy is broken.", where="toy:1", remedy="Take another.")
    return Toy(**job.config, rank=placement.rank, world_size=placement.world_size, dtype=placement.dtype)


if __name__ == "__main__":
    from deepspec.training.processes import worker

    sys.modules["deepspec.toy"] = sys.modules["__main__"]
    sys.exit(worker.main(sys.argv[1:]))
