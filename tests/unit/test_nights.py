import textwrap
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from deepspec.errors import NightsError
from deepspec.nights import OCCASIONS, PlannedNight, page, read_nights
from flows.nights import automations, schedule
from flows.nights.automations import STATES, Told
from tasks.runtime.prefect.flow import STATES as FLOW_STATES
from tests.fixtures.documents import ROOT
from tests.fixtures.refused import refused

NIGHT = "nights:\n  - recipe: tiny\n    cron: 0 2 * * *\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "nights.yaml"
    path.write_text(textwrap.dedent(text))
    return path


def planned(folder: Path, text: str) -> PlannedNight:
    (night,) = read_nights(written(folder, text)).nights
    return night


def test_an_entry_becomes_a_recipe_with_overrides(tmp_path: Path) -> None:
    night = planned(
        tmp_path,
        """
        timezone: Europe/Zurich
        notification: {webhook_from: HOOK, on: [failed]}
        nights:
          - recipe: tiny
            model: qwen3-4b
            target: /models/Qwen3 4B
            overrides: [train.lr=1e-3, budget.max_states_bytes=7]
            every_hours: 12
            budget: {max_states_bytes: 1000}
            approval: manual
        """,
    )
    assert (night.model, night.recipe, night.schedule) == ("qwen3-4b", "tiny", "every 12 h")
    assert (night.resolved.registered_model, night.resolved.target.path) == ("qwen3-4b", "/models/Qwen3 4B")
    assert (night.resolved.train.lr, night.resolved.budget.max_states_bytes) == (1e-3, 1000)
    assert night.resolved.gates.approval == "manual"
    assert night.timezone == "Europe/Zurich"
    assert night.notification is not None
    assert night.notification.on == ("failed",)


def test_a_recipe_file_lies_beside_the_nights(tmp_path: Path) -> None:
    """A worker runs in another folder, and gets the whole path; the model is what the file says."""
    text = (ROOT / "deepspec/recipes/tiny.yaml").read_text().replace("name: tiny", "name: ours")
    (tmp_path / "ours.yaml").write_text(text)
    night = planned(tmp_path, NIGHT.replace("tiny", "ours.yaml"))
    assert (night.recipe, night.model) == (str(tmp_path / "ours.yaml"), "ours")


SECRET = "https://hooks.example/T0/B0/s3cret"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (NIGHT + "  - recipe: tiny\n    every_hours: 5\n", ":4 (tiny)", ["tiny", "nights.yaml:2"]),
        (NIGHT + "    crom: 1\n", ":2 (tiny)", ["crom", "cron"]),
        ("nigths: []\n", "", ["nights"]),
        (NIGHT + "zone: UTC\n", "", ["zone"]),
        (NIGHT + "timezone: Mars/Olympus\n", "", ["timezone", "Mars/Olympus", "Europe/Zurich"]),
        (NIGHT + "    every_hours: 5\n", ":2 (tiny)", ["cron", "every_hours"]),
        ("nights:\n  - recipe: tiny\n", ":2 (tiny)", ["cron", "every_hours"]),
        (NIGHT.replace("tiny", "tinny"), ":2 (tinny), tinny", ["'tinny'", "tiny"]),
        (NIGHT + "    overrides: [train.lrr=1]\n", ":2 (tiny), recipe tiny", ["train.lrr"]),
        (NIGHT + "    budget: {max_goats: 1}\n", ":2 (tiny), recipe tiny", ["budget.max_goats"]),
        (NIGHT + "    budget: {max_states_bytes: -1}\n", ":2 (tiny), recipe tiny", ["budget.max_states_bytes", "-1"]),
        (NIGHT + f"notification: {{webhook_from: {SECRET}}}\n", "", ["webhook_from", "environment variable"]),
        (NIGHT + "notification: {webhook_from: A, block: slack-webhook/b}\n", "", ["webhook_from", "block"]),
        (NIGHT + "    notification: {block: team}\n", ":2 (tiny)", ["notification.block", "'team'"]),
        (NIGHT + "    notification: {block: a/b, on: [bored]}\n", ":2 (tiny)", ["notification.on", "missed"]),
        ("nights:\n  - tiny\n", ":2", ["mapping"]),
        ("nights: [\n", ":", ["YAML"]),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, text: str, line: str, words: list[str]) -> None:
    path = written(tmp_path, text)
    with pytest.raises(NightsError) as told:
        read_nights(path)
    assert str(told.value.where).startswith(f"{path}{line}")
    assert told.value.remedy
    assert "--set" not in str(told.value)
    assert all(word in str(told.value) for word in words), str(told.value)
    assert SECRET not in str(told.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with refused(NightsError, where=str(tmp_path / "no.yaml")):
        read_nights(tmp_path / "no.yaml")


@pytest.mark.parametrize("cron", ["0 2 * *", "0 25 * * *", "every night", "0 0 31 2 *"])
def test_a_cron_that_is_none_is_refused(tmp_path: Path, cron: str) -> None:
    night = planned(tmp_path, NIGHT.replace("0 2 * * *", f'"{cron}"'))
    with refused(NightsError, cron, where=night.where):
        schedule.check([night])


def test_a_schedule_that_overlaps_itself_is_refused(tmp_path: Path) -> None:
    """One that leaves a run as long as its budget allows is not; the nights of spring have an hour less."""
    for cron, hours, overlaps in (("0 2 * * *", 23, False), ("0 2 * * *", 23.5, True), ("0 2,10 * * *", 9, True)):
        text = NIGHT.replace("0 2 * * *", cron) + f"    budget: {{max_hours: {hours}}}\ntimezone: Europe/Zurich\n"
        night = planned(tmp_path, text)
        if not overlaps:
            schedule.check([night])
            assert schedule.missed_after(night) == timedelta(hours=24 + hours)
            continue
        with refused(NightsError, f"{hours} h", "budget.max_hours", where=night.where):
            schedule.check([night])


def test_a_missed_night_is_a_start_and_two_hours(tmp_path: Path) -> None:
    """The longest time between two starts counts: over a weekend it is three days."""
    hours = timedelta(hours=1)
    assert schedule.missed_after(planned(tmp_path, NIGHT)) == 26 * hours
    assert schedule.missed_after(planned(tmp_path, NIGHT + "    missed_after_hours: 30\n")) == 30 * hours
    weekdays = NIGHT.replace("0 2 * * *", "0 2 * * MON-FRI")
    assert schedule.missed_after(planned(tmp_path, weekdays)) == 74 * hours
    assert schedule.missed_after(planned(tmp_path, NIGHT.replace("cron: 0 2 * * *", "every_hours: 168"))) == 170 * hours


def test_every_end_of_a_run_ends_a_night_and_is_told_of() -> None:
    """But for no change, of which nobody needs to hear; a state that is renamed would be told of no more."""
    names = {name for status, (name, _) in FLOW_STATES.items() if status != "interrupted"} | {"Crashed", "Suspended"}
    assert names <= {*automations.ENDS}
    assert names - {"NoChange"} == {name for told in STATES.values() for name in told} - {"TimedOut"}
    assert STATES.keys() == set(OCCASIONS) - {"missed"}


def test_without_a_notification_a_missed_night_is_still_an_event() -> None:
    (missed,) = automations.wanted("tiny", UUID(int=1), None, timedelta(hours=26))
    assert [action.type for action in missed.actions] == ["do-nothing"]
    told = Told(UUID(int=2), is_webhook=False, on=("failed", "promoted"))
    found = {each.name: each.actions[0].type for each in automations.wanted("a", UUID(int=1), told, timedelta(hours=1))}
    assert found == {"a: missed": "do-nothing", "a: failed": "send-notification", "a: promoted": "send-notification"}


def test_what_the_server_adds_to_an_automation_is_no_difference() -> None:
    wanted = automations.never_starts(timedelta(minutes=30))
    found = wanted.model_copy(update={"enabled": False, "owner_resource": None})
    assert not automations.differs(wanted, found)
    assert automations.differs(automations.never_starts(timedelta(minutes=31)), found)


def test_golden_page_of_the_stacks_nights(request: pytest.FixtureRequest) -> None:
    """infra/README.md shows what infra/nights.yaml says; `make golden` writes it again."""
    readme = ROOT / "infra" / "README.md"
    before, mark, rest = readme.read_text(encoding="utf-8").partition("<!-- nights: generated from nights.yaml -->\n")
    assert mark
    after = rest[rest.index("\n\n") :]
    wanted = before + mark + page(read_nights(ROOT / "infra" / "nights.yaml")).rstrip("\n") + after
    if request.config.getoption("--golden"):
        readme.write_text(wanted, encoding="utf-8")
    assert readme.read_text(encoding="utf-8") == wanted
