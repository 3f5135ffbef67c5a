"""What served acceptance is compared with: the registered evaluation, and the first windows that were served.

Two references, each tested by itself with a part of the budget; they are not averaged:

* **Registered**: "is it what was registered?" τ of each domain as the evaluation has it. All traffic is compared with
  it *reweighted to the observed mix*: every answer with its own domain's τ. Its error is that of the evaluation's
  prompts. Of a few dozen it is so large that a drop of a tenth cannot be seen; `smallest_drop` says what can.
* **Burn-in**: "is it what it was at first?" τ of the first windows that were served. It has thousands of answers, an
  error of a percent, and knows the traffic's own texts; but a draft that was served badly from the start is
  badly served by it, too. All traffic is compared with it as it was, mix included: what moved, the causes say.

A mean of the two, weighted by precision, would be the burn-in wherever that is larger, and would be wrong wherever
benchmarks are not the traffic; then it would hide the one thing that only the registration knows.
"""

from collections.abc import Mapping, Sequence
from math import sqrt

import numpy as np
from pydantic import Field

from deepspec.evaluation.compare.drafts import Counts
from deepspec.evaluation.config import GATE
from deepspec.evaluation.intervals import Estimate, Floats, mean_estimate, ratio
from deepspec.monitoring.detector import REFERENCE_ERROR
from deepspec.monitoring.sums import Sums, mix_of
from deepspec.store.records import JsonRecord

OTHER = "other"
"""The domain of answers whose label is one too many, or none that can be a name."""


class Level(JsonRecord):
    """A measured τ.

    Attributes:
        tau: its value.
        error: its standard error.
        freedom: degrees of freedom of the error.
        prompts: that it was measured on.
    """

    tau: float
    error: float
    freedom: float
    prompts: int

    @property
    def estimate(self) -> Estimate:
        """The same for intervals and bounds."""
        return Estimate(self.tau, self.error, self.freedom)

    @property
    def margin(self) -> float:
        """How far its lower bound lies below it."""
        return self.tau - self.estimate.at_least(1.0 - REFERENCE_ERROR)

    @classmethod
    def of(cls, found: Estimate, prompts: int) -> "Level":
        """From an estimate."""
        return cls(tau=found.value, error=found.error, freedom=found.freedom, prompts=prompts)


class Registered(JsonRecord):
    """The registered evaluation, as a reference.

    Attributes:
        whole: of traffic without labels: the gate split, drawn from the data; else the mean over benchmarks.
        domains: by domain; a benchmark without a domain is one of its own.
        aliases: benchmark -> its domain: labels may name either.
    """

    whole: Level | None = None
    domains: dict[str, Level] = Field({})
    aliases: dict[str, str] = Field({})


def registered(counts: Mapping[str, Counts], domains: Mapping[str, str | None]) -> Registered:
    """From an evaluation's rounds.

    Args:
        counts: benchmark (or "gate") -> prompt -> (committed tokens, rounds).
        domains: benchmark -> its domain; None: it has none.
    """
    tables = {name: _table(of_benchmark) for name, of_benchmark in counts.items()}
    benchmarks = [name for name in tables if name != GATE]
    names: dict[str, list[str]] = {}
    for name in benchmarks:
        names.setdefault(domains.get(name) or name, []).append(name)
    levels = {domain: _level([tables[name] for name in own]) for domain, own in names.items()}
    gate = _level([tables[GATE]]) if GATE in tables else None
    return Registered(
        whole=gate if gate is not None else _level([tables[name] for name in benchmarks]),
        domains={domain: level for domain, level in levels.items() if level is not None},
        aliases={name: domains.get(name) or name for name in benchmarks},
    )


def reweighted(levels: Mapping[str, Level], parts: Mapping[str, Sums]) -> Level | None:
    """The registered τ at the mix of domains that was served, as far as they were measured; None where none was.

    Args:
        levels: by domain.
        parts: what was served.
    """
    mix = mix_of({domain: sums for domain, sums in parts.items() if domain in levels})
    if not mix:
        return None
    return Level(
        tau=sum(share * levels[domain].tau for domain, share in mix.items()),
        error=sqrt(sum((share * levels[domain].error) ** 2 for domain, share in mix.items())),
        freedom=min(levels[domain].freedom for domain in mix),
        prompts=sum(levels[domain].prompts for domain in mix),
    )


def _table(counts: Counts) -> Floats:
    rows = [found for found in counts.values() if found[1]]
    return np.asarray(rows, dtype=np.float64).reshape(-1, 2)


def _level(tables: Sequence[Floats]) -> Level | None:
    found = mean_estimate(tables, lambda sums_S2: ratio(*sums_S2.T))
    return None if found is None else Level.of(found, sum(map(len, tables)))
