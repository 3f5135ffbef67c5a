"""The month that pages are looked at on: two models, and everything that can become of a night."""

from pathlib import Path

from deepspec import history
from deepspec.registry.promotions import PromotionLog
from deepspec.serving.followers import followers
from deepspec.store import open_store
from tests.fixtures.month import NIGHTS, TEAMS, seed


def test_what_was_seeded_is_read_back_as_from_real_runs(tmp_path: Path) -> None:
    """The history, the promotion logs and the followers hold it, with every outcome that a night can have."""
    store = open_store(str(tmp_path / "store"))
    month = seed(store)
    assert [record.run_id for record in history.records(store.backend)] == [
        night.record.run_id for night in month.nights
    ]
    assert len(month.nights) == NIGHTS * len(TEAMS) - 1  # one was missed
    assert {night.status for night in month.nights} == {
        "promoted", "refused", "no_change", "awaiting_approval", "budget_exhausted", "failed", "interrupted"
    }  # fmt: skip
    kinds = {team.model: [entry.kind for entry in PromotionLog(store.backend).history(team.model)] for team in TEAMS}
    assert kinds == {"qwen3-4b": ["promote"] * 6, "gemma4-12b": [*["promote"] * 3, "rollback"]}
    assert {seen.state for seen in followers(store.backend)} == {"healthy", "lost", "unhealthy"}
