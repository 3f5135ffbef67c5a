"""Gates on whether a draft may serve at all: the target's answers come out, engines load it, a server serves it."""

from deepspec.gates.config import Config
from deepspec.gates.evidence import Evidence, Served
from deepspec.gates.verdict import Reason


class Lossless:
    """Whether greedy answers are equal with and without the draft, on the target it will serve with."""

    name = "lossless"

    def judge(self, evidence: Evidence, config: Config) -> Reason | None:
        """None where the recipe has no benchmark to ask; ties of the target's two best tokens are no difference."""
        del config
        evaluation = evidence.evaluation
        if evaluation is not None and not evaluation.benchmarks:
            return None
        probe = evaluation.lossless if evaluation is not None else None
        if probe is None or not probe.answers:
            said = "Whether answers are equal with and without the draft was not measured."
            return Reason(gate=self.name, passed=False, measured=None, required=None, sentence=said)
        differing = len(probe.differing)
        ties = f", {probe.ties} up to ties" if probe.ties else ""
        said = (
            f"{probe.answers - differing} of {probe.answers} greedy answers are equal with and without the draft{ties}."
        )
        required = float(probe.answers)
        return Reason(
            gate=self.name,
            passed=not differing,
            measured=float(probe.answers - differing),
            required=required,
            sentence=said,
        )


class Servable:
    """Whether the draft, exported as engines get it, has no flaw."""

    name = "servable"

    def judge(self, evidence: Evidence, config: Config) -> Reason | None:
        """None if the recipe asks for nothing; not looked at is not passed."""
        if not config.servable:
            return None
        flaws = evidence.flaws
        if flaws is None:
            said = "The draft was not exported, so whether engines can load it is unknown."
            return Reason(gate=self.name, passed=False, measured=None, required=0.0, sentence=said)
        said = f"The exported draft has a flaw: {flaws[0]}" if flaws else "The exported draft has no flaw."
        return Reason(gate=self.name, passed=not flaws, measured=float(len(flaws)), required=0.0, sentence=said)


class AsMeasured:
    """Whether the recipe's server serves the draft as it was measured."""

    name = "served"

    def judge(self, evidence: Evidence, config: Config) -> Reason | None:
        """None if the recipe names no server; one that does not answer is not passed."""
        if config.endpoint is None:
            return None
        found = evidence.served or Served(passed=False, sentence=f"The server at {config.endpoint} was not asked.")
        measured, required = (None if count is None else float(count) for count in (found.rounds, found.expected))
        return Reason(
            gate=self.name, passed=found.passed, measured=measured, required=required, sentence=found.sentence
        )
