"""The gate on domains: a gain on the whole must not be paid for by code alone."""

from deepspec.gates.config import Config
from deepspec.gates.evidence import Evidence
from deepspec.gates.verdict import Reason


class Domains:
    """Whether no domain's paired interval lies wholly below minus `max_domain_loss`.

    Not a test that no domain is worse: an equal draft would fail that nearly always with few prompts. It finds domains
    that are clearly worse, and says where there are too few prompts to see that.
    """

    name = "domains"

    def judge(self, evidence: Evidence, config: Config) -> Reason | None:
        """None if the recipe asks for nothing, there is no champion, or no benchmark is of a domain."""
        found = evidence.differences()
        if config.max_domain_loss is None or found is None or not evidence.domains:
            return None
        lost = -config.max_domain_loss
        unknown = sorted(name for name, part in found.domains.items() if part.ci95 is None)
        known = {name: part.ci95 for name, part in found.domains.items() if part.ci95 is not None}
        worse = sorted(name for name, (_, high) in known.items() if high < lost)
        said = [f"{name} is worse: {known[name][0]:+.2f} to {known[name][1]:+.2f} τ." for name in worse]
        if not worse and known:
            said = [f"No domain is clearly worse by more than {config.max_domain_loss:g} τ."]
        if unknown:
            said.append(f"Too few prompts to see whether {', '.join(unknown)} is worse.")
        ends = [high for _, high in known.values()]
        measured = min(ends) if ends else None
        return Reason(gate=self.name, passed=not worse, measured=measured, required=lost, sentence=" ".join(said))
