"""The verdicts that a store holds."""

from deepspec.gates.verdict import Verdict
from deepspec.store import Store


def verdicts(store: Store) -> list[Verdict]:
    """Every verdict, newest first by the store's clock: those of the machines that judge may differ by hours.

    Costs one listing, and two small reads for each.
    """
    return [
        Verdict.from_json(artifact.json("verdict.json"), where=f"gate/{artifact.key[:12]}")
        for artifact in store.newest_first("gate")
    ]


def verdicts_about(store: Store, digest: str) -> list[Verdict]:
    """Every verdict about the draft with this digest, newest first."""
    return [verdict for verdict in verdicts(store) if verdict.challenger == digest]
