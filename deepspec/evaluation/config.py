"""What a draft is judged on, and how; the section `evaluate` of a recipe. Torch-free."""

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from deepspec.config import Section, later_field, renamed_field
from deepspec.decoding.config import Sampling
from deepspec.evaluation.known_benchmarks import KNOWN, Domain, KnownBenchmark, known_benchmark, unknown_name

GATE = "gate"
"""The name of the run's own held-out split among the benchmarks."""


class Benchmark(Section):
    """A set of prompts that no draft is trained on; a plain path in the recipe stands for `{path: …}`.

    The path may be the name of a known benchmark (or its id on the hub), which then has DeepSpec's number of prompts
    unless another is given. `rows` and `domain` need not be said of a benchmark that is called like a known one.

    In the keys: `rows`, because it decides what is asked, also of what the conversations stage holds out. `domain`
    decides nothing that is decoded, but results are grouped by it, so it is in the evaluation's key and in no other.
    """

    path: str = Field(
        min_length=1,
        description="JSON lines, Parquet or a `datasets` id, with `turns` or `messages`; or a known benchmark's name",
        json_schema_extra={"location": True},
    )
    share: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="seeded share of the rows, by content, that is held out; the rest may be trained on",
    )
    num_prompts: int | None = Field(None, ge=1, description="most held-out rows to ask; a seeded choice of them")
    domain: Domain | None = later_field(
        None, key_absent=None, description="what it is counted to; none: that of the known benchmark"
    )
    rows: str | None = later_field(
        None, key_absent=None, description="the known benchmark whose own rows it has; none: the one of its name"
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_path(cls, value: object) -> object:
        if isinstance(value, str):
            value = {"path": value}
        if isinstance(value, Mapping) and "num_prompts" not in value and isinstance(value.get("path"), str):
            known = known_benchmark(value["path"])
            return value if known is None else {**value, "num_prompts": known.num_prompts}
        return value

    @field_validator("rows")
    @classmethod
    def _known_rows(cls, value: str | None) -> str | None:
        if value is not None and value not in KNOWN:
            raise ValueError(f"{value!r} is no benchmark that is known by name. {unknown_name(value)}")
        return value

    def known(self, name: str) -> KnownBenchmark | None:
        """The known benchmark whose rows these are, of a benchmark that the recipe calls `name`."""
        if self.rows is not None:
            return KNOWN[self.rows]
        return known_benchmark(self.path) or KNOWN.get(name)

    def domain_of(self, name: str) -> Domain | None:
        """What a benchmark that the recipe calls `name` is counted to; None: to nothing."""
        known = self.known(name)
        return self.domain or (known.domain if known is not None else None)


def domains_of(benchmarks: Mapping[str, Benchmark]) -> dict[str, list[str]]:
    """Domain -> names of its benchmarks."""
    found: dict[str, list[str]] = {}
    for name, benchmark in benchmarks.items():
        domain = benchmark.domain_of(name)
        if domain is not None:
            found.setdefault(domain, []).append(name)
    return found


class Calibration(Section):
    """How the confidence head's temperatures are fitted and judged (Sequential Temperature Scaling)."""

    num_width_bins: int = Field(20, ge=2, description="equal-width bins of the fitted calibration error")
    num_mass_bins: int = Field(15, ge=2, description="equal-mass bins of the second, reported one")
    min_temperature: float = Field(0.1, gt=0.0)
    max_temperature: float = Field(10.0, gt=0.0)
    num_temperatures: int = Field(201, ge=3, description="points of the search, spaced evenly in the logarithm")
    num_rows: int = Field(8, ge=1, description="prompts decoded at once while confidences are collected")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_temperature >= self.max_temperature:
            raise ValueError("min_temperature must be below max_temperature")
        return self


class LoadExperiment(Section):
    """The load experiment: plain, fixed-length and scheduled decoding of the same requests at several concurrencies."""

    concurrency: tuple[int, ...] = Field(
        (1, 2, 4, 8, 16, 32, 64), description="requests decoded at once; none: left out"
    )
    num_repeats: int = Field(3, ge=1, description="how often each way takes its turn at each concurrency")
    requests_per_row: int = Field(2, ge=1, description="requests of a run, per one of its concurrency")
    max_new_tokens: int = Field(128, ge=1, description="limit of one answer in tokens")

    @field_validator("concurrency")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(rows < 1 for rows in value):
            raise ValueError("a concurrency is at least 1")
        return tuple(sorted(set(value)))


class Config(Section):
    """Benchmarks, splits, sampling and sizes of an evaluation."""

    RETIRED: ClassVar[Mapping[str, str]] = {
        "num_bootstrap_samples": "intervals are no longer resampled",
    }

    seed: int = Field(0, ge=0, description="of held-out shares and of the choice of prompts")
    benchmarks: dict[str, Benchmark] = Field({}, description="name -> prompts; or a list of known benchmarks' names")
    num_gate_prompts: int = Field(64, ge=1, description="prompts of the gate split that decide about promotion")
    num_calibration_prompts: int = Field(128, ge=2, description="prompts of the calibration split that are decoded")
    num_speed_prompts: int = Field(
        8, ge=1, description="prompts of each benchmark that are also decoded one at a time, both ways, for the speedup"
    )
    num_lossless_prompts: int = Field(
        2,
        ge=0,
        description="prompts of each benchmark that are answered greedily with and without the draft, to compare",
    )
    num_warmup_prompts: int = Field(2, ge=0, description="decoded first, both ways, and not counted")
    max_new_tokens: int = Field(2048, ge=1, description="limit of one answer in tokens")
    sampling: Sampling = Sampling()
    max_skipped_share: float = renamed_field(
        0.05,
        was="max_skipped",
        ge=0.0,
        le=1.0,
        description="share of a benchmark's prompts that may be too long for the target",
    )
    calibration: Calibration = Calibration()
    thresholds: tuple[float, ...] = Field(
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        description="confidences below which drafts are not verified, for the sweep; none: left out",
    )
    num_sweep_prompts: int = Field(8, ge=1, description="prompts of each benchmark that every threshold decodes")
    load: LoadExperiment = LoadExperiment()

    @field_validator("thresholds")
    @classmethod
    def _probabilities(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0.0 <= threshold <= 1.0 for threshold in value):
            raise ValueError("a threshold is a probability")
        return tuple(sorted(set(value)))

    @field_validator("benchmarks", mode="before")
    @classmethod
    def _accept_names(cls, value: object) -> object:
        """`[gsm8k, math500]` stands for `{gsm8k: gsm8k, math500: math500}`."""
        if not isinstance(value, list | tuple):
            return value
        for name in value:
            if not isinstance(name, str):
                raise ValueError(f"{name!r} is no name; a list has names of known benchmarks, a mapping takes more")
            if name not in KNOWN:
                raise ValueError(f"{name!r} is no benchmark that is known by name. {unknown_name(name)}")
        return {name: name for name in value}

    @field_validator("benchmarks")
    @classmethod
    def _usable_names(cls, value: dict[str, Benchmark]) -> dict[str, Benchmark]:
        for name in value:
            if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
                raise ValueError(f"{name!r} is no name: letters, digits, dot, dash and underscore")
            if name == GATE:
                raise ValueError(f"{GATE!r} is the name of the run's own held-out split")
        return {name: _without_implied_fields(name, benchmark) for name, benchmark in value.items()}


def _without_implied_fields(name: str, benchmark: Benchmark) -> Benchmark:
    """The benchmark without the fields that its name implies, and with those that only its path implies.

    So it means the same when its path is replaced by the file's, and has the same key as one that names the file.
    """
    known = benchmark.known(name)
    if known is None:
        return benchmark
    domain = None if benchmark.domain == known.domain else benchmark.domain
    rows = None if known.name == name else known.name
    return benchmark.model_copy(update={"domain": domain, "rows": rows})
