"""What trainings start from, night after night: of one model in a store, with artifacts that are only named."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deepspec.errors import ArtifactMissing, RecipeError
from deepspec.gates.verdict import Reason, Verdict
from deepspec.recipe import load_recipe
from deepspec.registry.entries import DraftReference
from deepspec.registry.promotions import PromotionLog
from deepspec.store import Artifact, Parent, Store, artifacts, open_store
from deepspec.store.fingerprint import External
from tasks.runtime.references import Pending, Reference
from tasks.runtime.run import Run
from tasks.start import Beginning, beginning_of
from tasks.train import train
from tests.fixtures.refused import refused
from tests.fixtures.store import ingredients, put

CHAMPION = ("train.init_from=champion",)


class Nights:
    """A model's nights: each asks what to start from, trains unless that is there, and promotes if it is told to."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.store: Store = open_store(str(folder / "store"))
        self.recipe = load_recipe("tiny", overrides or CHAMPION)
        self.home = folder
        self.clock = lambda: datetime.now(UTC)

    def learned(self, data: str) -> dict[str, Reference]:
        return {
            "states": put(self.store, ingredients("states", of=data)),
            "tokens": put(self.store, ingredients("tokens", of=data)),
            "target": External("target", "target", "nowhere"),
        }

    def beginning(self, learned: Mapping[str, Reference], *, previewing: bool = False) -> Beginning:
        """As every night has it: a preview first, which says the same."""
        run = Run(self.recipe, self.store, self.home)
        looked = beginning_of(run.preview(), train, learned)
        return looked if previewing else beginning_of(run, train, learned)

    def night(self, data: str, *, promote: bool = True, die: bool = False) -> tuple[str, str, tuple[str, ...]]:
        """(whether it trained, key of the draft that it came to, notes)."""
        learned = self.learned(data)
        looked, begun = self.beginning(learned, previewing=True), self.beginning(learned)
        assert looked == begun
        made_of = train.ingredients(Run(self.recipe, self.store, self.home), {**learned, **begun.inputs})
        if die:
            return "died", "", begun.notes
        draft = self.store.find("train", self.key(made_of))
        status = "hit"
        if draft is None:
            status, parents = "ran", {}
            for name, item in {**learned, **begun.inputs}.items():
                assert isinstance(item, Artifact | External)
                key = item.key if isinstance(item, Artifact) else None
                parents[name] = Parent(kind=getattr(item, "kind", "external"), key=key, digest=item.digest)
            with self.store.write("train", made_of, parents) as writing:
                (writing.directory / "weights").write_text(self.key(made_of))
            draft = writing.artifact
        if promote:
            self.promote(draft)
        return status, draft.key, begun.notes

    def key(self, made_of: object) -> str:
        from deepspec.store import artifact_key

        return artifact_key(made_of)  # type: ignore[arg-type]

    def promote(self, draft: Artifact) -> None:
        log = PromotionLog(self.store.backend, self.clock)
        last = log.champion("tiny")
        reason = Reason(gate="tau", passed=True, measured=1.0, sentence="Better.")
        against = None if last is None or last.digest == draft.digest else last.digest
        verdict = Verdict(accepted=True, reasons=(reason,), challenger=draft.digest, champion=against)
        number = len(log.history("tiny")) + 1
        reference = DraftReference(kind=draft.kind, key=draft.key, digest=draft.digest, version=str(number))
        log.promote("tiny", reference, verdict, who="night")

    def started_from(self, key: str) -> str | None:
        parent = self.store.get("train", key).manifest.parents.get("init")
        return None if parent is None else parent.key


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(tmp_path)


@pytest.mark.parametrize("name", ["champion", "models:/tiny@champion"])
def test_a_champion_is_one_by_either_name(tmp_path: Path, name: str) -> None:
    nights = Nights(tmp_path, f"train.init_from={name}")
    _, first, _ = nights.night("monday")
    assert nights.night("monday")[:2] == ("hit", first)
    assert nights.started_from(nights.night("tuesday")[1]) == first


def test_the_first_night_trains_from_new_weights_and_says_so(nights: Nights) -> None:
    status, draft, notes = nights.night("monday")
    assert (status, nights.started_from(draft)) == ("ran", None)
    assert len(notes) == 1
    assert "no champion" in notes[0]


def test_a_night_without_new_data_finds_what_was_made(nights: Nights) -> None:
    """Promoted or refused, and whoever is champion by then."""
    _, first, _ = nights.night("monday")
    status, again, notes = nights.night("monday")
    assert (status, again) == ("hit", first)
    assert "Nothing is new since the champion models:/tiny/1" in notes[0]

    status, second, notes = nights.night("tuesday")
    assert (status, nights.started_from(second)) == ("ran", first)
    assert notes == ("Trained from the champion models:/tiny/1.",)
    assert nights.night("tuesday")[:2] == ("hit", second)

    refused_draft = nights.night("wednesday", promote=False)[1]
    assert nights.started_from(refused_draft) == second
    assert nights.night("wednesday", promote=False)[:2] == ("hit", refused_draft)
    nights.night("thursday")
    status, found, notes = nights.night("wednesday", promote=False)
    assert (status, found) == ("hit", refused_draft)
    assert "was champion when this training was first asked for" in notes[0]
    assert nights.night("thursday")[0] == "hit"


def test_a_night_that_was_killed_goes_on_with_what_it_had_begun(nights: Nights) -> None:
    """Another draft has become champion meanwhile: a training that is resumed needs the key it had."""
    _, first, _ = nights.night("monday")
    assert nights.night("tuesday", die=True)[0] == "died"
    _, other, _ = nights.night("wednesday")
    status, draft, _ = nights.night("tuesday", promote=False)
    assert (status, nights.started_from(draft)) == ("ran", first)
    assert other != first


def test_every_third_training_is_a_control_and_a_killed_one_stays_so(tmp_path: Path) -> None:
    nights = Nights(tmp_path, *CHAMPION, "train.control_every=3")
    controls = []
    for day in range(1, 8):
        nights.night(f"day {day}", die=True)
        _, draft, notes = nights.night(f"day {day}")
        again = nights.night(f"day {day}")
        assert again[:2] == ("hit", draft)
        controls += [day] if any(note.startswith("Control: ") for note in notes) else []
        assert (nights.started_from(draft) is None) == (day in (1, 4, 7))
    assert controls == [4, 7]


def test_a_clock_that_jumps_changes_no_decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Years back and forth between nights, for the store and for the promotion log: the same as by a good clock."""
    days = ["one", "two", "two", "three", "one", "four", "three", "five"]
    by_clock: list[list[tuple[str, str, tuple[str, ...]]]] = []
    for jumps in (False, True):
        nights = Nights(tmp_path / str(jumps), *CHAMPION, "train.control_every=3")
        decided = []
        for number, day in enumerate(days):
            year = 2026 - 3 * (number % 2) if jumps else 2026
            now = datetime(year, 12, 1 + (0 if jumps else number), tzinfo=UTC)
            nights.clock = lambda now=now: now  # type: ignore[misc]
            monkeypatch.setattr(artifacts, "datetime", type("Clock", (), {"now": lambda _, now=now: now}))
            decided.append(nights.night(day))
        by_clock.append(decided)
    assert by_clock[0] == by_clock[1]
    assert [status for status, _, _ in by_clock[0]].count("ran") == 5


def test_a_champion_from_before_starts_were_written_down_is_known_by_its_manifest(nights: Nights) -> None:
    """Trained without a warm start, or elsewhere: there is no record of it."""
    without = Nights(nights.home, "train.lr=2e-3")
    _, draft, notes = without.night("monday")
    assert notes == ()
    nights.recipe = load_recipe("tiny", [*CHAMPION, "train.lr=2e-3"])
    status, found, _ = nights.night("monday")
    assert (status, found) == ("hit", draft)
    nights.recipe = load_recipe("tiny", [*CHAMPION, "train.lr=3e-3"])  # another recipe is news
    status, _, _ = nights.night("monday")
    assert status == "ran"


def test_a_preview_that_does_not_know_the_data_yet_says_what_it_can(tmp_path: Path) -> None:
    nights = Nights(tmp_path, *CHAMPION, "train.control_every=2")
    learned = {**nights.learned("monday"), "tokens": Pending("tokens")}
    assert "no champion" in nights.beginning(learned, previewing=True).notes[0]
    nights.night("monday")
    assert "from the champion" in nights.beginning(learned, previewing=True).notes[0]
    nights.night("tuesday")
    assert "Control" in nights.beginning(learned, previewing=True).notes[0]


def test_a_start_that_is_gone_is_named_only_where_it_is_needed(nights: Nights) -> None:
    nights.night("monday")
    start = nights.store.get("train", nights.night("monday")[1])
    _, made, _ = nights.night("tuesday", promote=False)
    nights.night("wednesday", die=True)
    start.condemn("lost")
    assert nights.night("tuesday", promote=False)[:2] == ("hit", made)
    with refused(ArtifactMissing, where=f"train/{start.key}"):
        nights.night("wednesday")


def test_a_champion_that_is_damaged_is_made_again_from_what_it_was_made_from(nights: Nights) -> None:
    nights.night("monday")
    _, champion, _ = nights.night("tuesday")
    nights.store.get("train", champion).condemn("lost")
    assert nights.night("tuesday", promote=False)[:2] == ("ran", champion)


def test_a_control_of_nothing_is_no_recipe() -> None:
    with refused(RecipeError, "control_every"):
        load_recipe("tiny", ["train.control_every=3"])
