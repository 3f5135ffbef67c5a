"""What a decoding step costs on the machine at hand, as a function of its load: the scheduler's `SPS` table.

The paper's table has one argument, the tokens B of a verification. A step's duration also depends on its rows: each is
drafted for, has a context to attend to, and needs bookkeeping. So a curve over B is measured for several numbers of
rows R, drafting included (its time is spent before a length is chosen), and steps per second are interpolated between
them: SPS(B | R). Curves over B are made monotone: a measured table is jagged, and Algorithm 1 stops at the first
admission that does not pay. (Not convex: on a CPU the first few tokens cost most, and a chord would promise savings
that are not there.) Plain steps are a curve over R.

Torch-free; measuring is in profiling.py. Legend: R rows, B tokens of a verification (anchors included).
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
        from scipy.optimize import isotonic_regression

        by_load: dict[float, list[float]] = {}
        for load, seconds in measured:
            if not seconds >= 0 or not np.isfinite(seconds):
                raise ValueError(f"{seconds} is no duration")
            by_load.setdefault(float(load), []).append(float(seconds))
        if not by_load:
            raise ValueError("nothing was measured")
        loads = sorted(by_load)
        means = [float(np.mean(by_load[load])) for load in loads]
        fitted = isotonic_regression(means, weights=[len(by_load[load]) for load in loads])
        return cls(tuple(loads), tuple(fitted.x.tolist()))

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
    """Seconds of steps.

    Attributes:
        drafting: R -> seconds of a step that drafts for R rows, by the tokens B it verifies; R increasing.
        plain: seconds of a step of plain decoding, by R.
    """

    drafting: Mapping[int, Curve]
    plain: Curve

    def steps_per_second(self, num_rows: int, num_tokens: Sequence[float] | Floats) -> Floats:
        """SPS(B | R) at each B.

        Between two measured numbers of rows, the curves are read at the same tokens per row; beyond the last one the
        time grows in proportion to the rows.
        """
        per_row = np.asarray(num_tokens, dtype=np.float64) / num_rows
        measured = sorted(self.drafting)
        above = next((rows for rows in measured if rows >= num_rows), None)
        below = max((rows for rows in measured if rows <= num_rows), default=measured[0])
        seconds = self.drafting[below](per_row * below)
        if above is None:
            seconds = seconds * (num_rows / below)
        elif above != below:
            share = (num_rows - below) / (above - below)
            seconds = (1.0 - share) * seconds + share * self.drafting[above](per_row * above)
        rates: Floats = 1.0 / seconds
        return rates

    def table(self) -> dict[str, float]:
        """The paper's table: steps per second by B alone, monotone; of plain steps if only those were measured."""
        curves = self.drafting.values() if self.drafting else (self.plain,)
        measured = [pair for curve in curves for pair in zip(curve.loads, curve.seconds, strict=True)]
        return {load: 1.0 / seconds for load, seconds in Curve.fitted(measured).to_json().items()}

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        drafting = {str(rows): curve.to_json() for rows, curve in sorted(self.drafting.items())}
        return {"drafting_seconds": drafting, "plain_seconds": self.plain.to_json()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        drafting = {int(rows): Curve.from_json(curve) for rows, curve in content["drafting_seconds"].items()}
        return cls(dict(sorted(drafting.items())), Curve.from_json(content["plain_seconds"]))
