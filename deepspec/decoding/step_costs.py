"""What a decoding step costs on the machine at hand, as a function of its load: the scheduler's `SPS` table.

A step over R rows that verifies B tokens (anchors included) takes draft(R) + verify(B) seconds; a plain step over R
rows, plain(R). All three are measured at a few loads (`measured_costs`), made monotone (a measured table is jagged, and
Algorithm 1 stops at the first admission that does not pay), and read by interpolation. With R rows the steps per second
are SPS(B) = 1 / (draft(R) + verify(B)): what is spent on drafting is in them, because it is spent by the time that a
length is chosen.

Numpy only. Legend: R rows, B tokens of a verification, N measurements.
Source: the DSpark paper (arXiv 2607.05147), Algorithm 1, for the table's use.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Curve:
    """Seconds as a non-decreasing, piecewise linear function of a load.

    Attributes:
        loads: increasing; at least one.
        seconds: at each; non-decreasing.
    """

    loads: tuple[float, ...]
    seconds: tuple[float, ...]

    @classmethod
    def fitted(cls, measured: Iterable[tuple[float, float]]) -> Self:
        """The non-decreasing curve nearest to measurements (load, seconds) in least squares.

        Raises:
            ValueError: nothing was measured, or not in seconds.
        """
        by_load: dict[float, list[float]] = {}
        for load, seconds in measured:
            if not seconds >= 0 or not np.isfinite(seconds):
                raise ValueError(f"{seconds} is no duration")
            by_load.setdefault(float(load), []).append(float(seconds))
        if not by_load:
            raise ValueError("nothing was measured")
        loads = sorted(by_load)
        means = [float(np.mean(by_load[load])) for load in loads]
        return cls(tuple(loads), tuple(_isotonic(means, [len(by_load[load]) for load in loads])))

    def __call__(self, loads: Sequence[float] | Floats | float) -> Floats:
        """Seconds at each load; beyond what was measured the last slope goes on, before it the first value holds."""
        at = np.asarray(loads, dtype=np.float64)
        inside: Floats = np.interp(at, self.loads, self.seconds)
        if len(self.loads) == 1:
            return inside
        slope = (self.seconds[-1] - self.seconds[-2]) / (self.loads[-1] - self.loads[-2])
        beyond: Floats = inside + np.maximum(at - self.loads[-1], 0.0) * slope
        return beyond

    def to_json(self) -> dict[str, float]:
        """{load: seconds}."""
        return {f"{load:g}": seconds for load, seconds in zip(self.loads, self.seconds, strict=True)}

    @classmethod
    def from_json(cls, content: Mapping[str, float]) -> Self:
        """What `to_json` gave."""
        pairs = sorted((float(load), float(seconds)) for load, seconds in content.items())
        return cls(tuple(load for load, _ in pairs), tuple(seconds for _, seconds in pairs))


@dataclass(frozen=True)
class StepCosts:
    """Seconds of a step's parts.

    Attributes:
        verify: by tokens B of a verification: the target's forward, the verdict, and the bookkeeping.
        draft: by rows R: proposing, and taking in the states of what was committed.
        plain: by rows R: a whole step of plain decoding.
    """

    verify: Curve
    draft: Curve
    plain: Curve

    def steps_per_second(self, num_rows: int, num_tokens: Sequence[int] | Floats) -> Floats:
        """SPS at each B, for a step that drafts for R rows."""
        rates: Floats = 1.0 / (self.draft(float(num_rows)) + self.verify(num_tokens))
        return rates

    def to_json(self) -> dict[str, dict[str, float]]:
        """Plain data."""
        return {
            "verify_seconds": self.verify.to_json(),
            "draft_seconds": self.draft.to_json(),
            "plain_seconds": self.plain.to_json(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Mapping[str, float]]) -> Self:
        """What `to_json` gave."""
        return cls(*(Curve.from_json(content[f"{part}_seconds"]) for part in ("verify", "draft", "plain")))


def _isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The non-decreasing sequence nearest to `values` in weighted least squares: neighbours that fall are pooled."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        pool = (value, float(weight), 1)
        while pools and pools[-1][0] >= pool[0]:
            mean, mass, count = pools.pop()
            total = mass + pool[1]
            pool = ((mean * mass + pool[0] * pool[1]) / total, total, count + pool[2])
        pools.append(pool)
    return [mean for mean, _, count in pools for _ in range(count)]
