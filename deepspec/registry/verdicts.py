"""The verdicts that a store holds."""

from deepspec.gates.verdict import Verdict
from deepspec.store import Store


def verdicts(store: Store) -> list[Verdict]:
    """Every verdict, newest first.

    Costs one listing, and two small reads for each.
    """
    newest_first = sorted(store.artifacts("gate"), key=lambda item: item.manifest.created_at, reverse=True)
    return [
        Verdict.from_json(artifact.json("verdict.json"), where=f"gate/{artifact.key[:12]}") for artifact in newest_first
    ]


def verdicts_about(store: Store, digest: str) -> list[Verdict]:
    """Every verdict about the draft with this digest, newest first."""
    return [verdict for verdict in verdicts(store) if verdict.challenger == digest]
