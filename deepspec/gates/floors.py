"""Gates on what a draft has to reach by itself, champion or not: τ, speed, calibration."""

from deepspec.gates.config import Config
from deepspec.gates.evidence import Evidence
from deepspec.gates.gain import ROUNDING, tau_of
from deepspec.gates.verdict import Reason


class TauFloor:
    """Whether τ on the gate split reaches `min_tau`."""

    name = "tau_floor"

    def judge(self, evidence: Evidence, config: Config) -> Reason | None:
        """None if the recipe asks for no floor; ArtifactError if the measurement has no usable τ."""
        if config.min_tau is None:
            return None
        measured = tau_of(evidence.challenger, "challenger")
        passed = measured - config.min_tau > -ROUNDING
        said = f"τ {measured:.3f} {'reaches' if passed else 'is below'} the floor of {config.min_tau:g}."
        return Reason(gate=self.name, passed=passed, measured=measured, required=config.min_tau, sentence=said)


class BenchmarkFloors:
    """Whether τ on each benchmark of `min_benchmark_tau` reaches what is asked there."""

    name = "benchmark_floors"

    def judge(self, evidence: Evidence, config: Config) -> Reason | None:
        """Of the benchmark that is furthest below its floor, or least above it; None if there is no floor."""
        if not config.min_benchmark_tau:
            return None
        parts = evidence.evaluation.benchmarks if evidence.evaluation is not None else {}
        found = {name: parts[name].tau if name in parts else None for name in config.min_benchmark_tau}
        missing = sorted(name for name, tau in found.items() if tau is None)
        if missing:
            said = f"τ was not measured on {', '.join(missing)}, where a floor is asked."
            return Reason(gate=self.name, passed=False, measured=None, required=None, sentence=said)
        over = {name: tau - config.min_benchmark_tau[name] for name, tau in found.items() if tau is not None}
        least = min(over, key=lambda name: (over[name], name))
        floor = config.min_benchmark_tau[least]
        low = [f"{name} {found[name]:.3f}" for name, more in sorted(over.items()) if more <= -ROUNDING]
        said = f"τ is below its floor on {', '.join(low)}." if low else "τ reaches its floor on every benchmark."
        return Reason(gate=self.name, passed=not low, measured=found[least], required=floor, sentence=said)


class Speed:
    """Whether the lower end of the speedup's interval, mean over benchmarks, exceeds `min_speedup`."""

    name = "speed"

    def judge(self, evidence: Evidence, config: Config) -> Reason | None:
        """None if the recipe asks for no speed; not measured is not passed."""
        if config.min_speedup is None:
            return None
        mean = evidence.evaluation.macro if evidence.evaluation is not None else None
        if mean is None or mean.speedup is None or mean.speedup_ci95 is None:
            said = "The speedup was not measured on enough prompts of every benchmark (evaluate.num_speed_prompts)."
            return Reason(gate=self.name, passed=False, measured=None, required=config.min_speedup, sentence=said)
        low = mean.speedup_ci95[0]
        passed = low - config.min_speedup > ROUNDING
        shown = f"The speedup is {mean.speedup:.2f}"
        refused = f"{shown}, but perhaps no more than {low:.2f}; more than {config.min_speedup:g} is asked."
        said = f"{shown}, surely more than {low:.2f}." if passed else refused
        return Reason(gate=self.name, passed=passed, measured=low, required=config.min_speedup, sentence=said)


class CalibrationError:
    """Whether the draft's confidences mean what they say, within `max_calibration_error`."""

    name = "calibration"

    def judge(self, evidence: Evidence, config: Config) -> Reason | None:
        """None if the recipe asks for nothing, or the draft has no confidences."""
        most, found = config.max_calibration_error, evidence.calibration
        if most is None or (found is not None and not found.applicable):
            return None
        if found is None or found.mean_ece_after is None:
            said = "The calibration error of the draft's confidences was not measured."
            return Reason(gate=self.name, passed=False, measured=None, required=most, sentence=said)
        passed = found.mean_ece_after <= most
        said = f"The calibration error {found.mean_ece_after:.3f} is {'within' if passed else 'above'} {most:g}."
        return Reason(gate=self.name, passed=passed, measured=found.mean_ece_after, required=most, sentence=said)
