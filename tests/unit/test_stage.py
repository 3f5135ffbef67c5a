"""The stage decorator: keys, reuse, publishing, and the policy of its Prefect tasks."""

import json
import os
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from deepspec.config import Section, later_field, location_field, renamed_field
from deepspec.cost.accounts import Accounts
from deepspec.errors import ArtifactDamaged, BudgetExceeded, DataError, GateFailed, RecipeError, TransientError
from deepspec.store import Artifact, open_store
from deepspec.store.fingerprint import External
from deepspec.store.lease import leased
from deepspec.store.manifest import Payer
from tasks.runtime.counts import StageCounts
from tasks.runtime.job import Job
from tasks.runtime.paid import paid
from tasks.runtime.records import StageRecord
from tasks.runtime.references import NoInputs, Pending, Value
from tasks.runtime.run import Run
from tasks.runtime.stage import RETRY_POLICY, Making, Stage, is_transient, stage
from tasks.runtime.stage import make as make_one
from tests.fixtures.refused import refused
from tests.stage_lock import stages


class Numbers(Section):
    start: int = 1
    unread: int = 0
    later: int = later_field(2, key_absent=0)


class Toy(Section):
    numbers: Numbers = Numbers()


@dataclass(frozen=True)
class Source:
    source: External


@dataclass(frozen=True)
class Doubled:
    count: Artifact
    by: int


@stage(version=1, reads=("numbers.start",))
def count(inputs: Source, config: Toy, out: Path, job: Job) -> StageCounts:
    """Write a number."""
    (out / "number.txt").write_text(f"{config.numbers.start} {inputs.source.directory().name}")
    return StageCounts.model_validate({"rows": 1})


@stage(version=1)
def double(inputs: Doubled, config: Toy, out: Path, job: Job) -> StageCounts:
    """Double it."""
    value = int(inputs.count.path("number.txt").read_text().split()[0])
    (out / "double.txt").write_text(str(value * inputs.by))
    return StageCounts()


class Item(Section):
    path: str = location_field("here")
    weight: float | None = later_field(None, key_absent=None)


class Later(Section):
    numbers: Numbers = Numbers()
    limit: int | None = later_field(7, key_absent=None)
    parts: tuple[Item, ...] = (Item(),)


@stage(version=1, reads=("numbers.start", "limit", "parts"))
def later(inputs: Source, config: Later, out: Path, job: Job) -> StageCounts:
    """As `count`, but for fields that were added later."""
    return StageCounts()


def run_of(tmp_path: Path, recipe: BaseModel | None = None, *, previewing: bool = False) -> Run[Any]:
    return Run(recipe or Toy(), open_store(str(tmp_path / "store")), tmp_path, previewing=previewing)


def make(run: Run[Any], current: Stage, **inputs: Any) -> Artifact:
    """Run a stage as its Prefect task would, without Prefect."""
    making = Making(run, current, inputs)
    with making.alone():
        if making.found is None:
            make_one(making)
    return making.artifact


SOURCE = External("source", "f" * 64, "/somewhere/data.jsonl")


def test_later_fields_are_left_out_of_keys_where_they_say_nothing_new(tmp_path: Path) -> None:
    def sections(**values: Any) -> dict[str, Any]:
        made = later.ingredients(run_of(tmp_path, Later.model_validate(values)), {"source": SOURCE})
        content: dict[str, Any] = made.canonical()["sections"]
        return content

    assert sections(limit=None) == {"numbers.start": 1}
    assert sections(limit=None, parts=[{"path": "there"}, {}]) == {"numbers.start": 1}
    assert sections() == {"numbers.start": 1, "limit": 7}
    assert sections(parts=[{"weight": 2}, {}])["parts"] == [{"weight": 2.0}, {}]


def test_key_follows_what_is_read_and_nothing_else(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    made = make(run, count, source=SOURCE)
    unread = run_of(tmp_path, Toy(numbers=Numbers(unread=5)))
    moved = External("source", "f" * 64, "/elsewhere/data.jsonl")
    assert count(unread, source=moved).manifest == made.manifest
    assert unread.records[0].status == "hit"
    changed = run_of(tmp_path, Toy(numbers=Numbers(start=2)), previewing=True)
    assert isinstance(count(changed, source=SOURCE), Pending)
    assert changed.records[0].why == "numbers.start changed 1 -> 2"


def test_a_field_that_came_later_is_not_in_the_key_while_it_changes_nothing(tmp_path: Path) -> None:
    reader = Stage(count.function, version=1, reads=("numbers.start", "numbers.later"))
    inputs = {"source": SOURCE}
    neutral, other = (run_of(tmp_path, Toy(numbers=Numbers(later=later))) for later in (0, 2))
    assert reader.ingredients(neutral, inputs) == count.ingredients(neutral, inputs)
    assert reader.ingredients(other, inputs).sections == {"numbers.start": 1, "numbers.later": 2}


class Named(Section):
    limit: int = renamed_field(7, was="max_rows")
    later: int = renamed_field(0, was="new", json_schema_extra={"key_absent": 0})


class Holder(Section):
    named: Named = Named()


def test_a_renamed_field_keeps_its_old_name_in_keys(tmp_path: Path) -> None:
    fields = Stage(count.function, version=1, reads=("named.limit", "named.later"))
    whole = Stage(count.function, version=1, reads=("named",))

    def sections(reader: Stage, **values: int) -> Any:
        run = run_of(tmp_path, Holder(named=Named.model_validate(values)))
        return reader.ingredients(run, {"source": SOURCE}).canonical()["sections"]

    assert sections(fields) == {"named.max_rows": 7}
    assert sections(fields, limit=8, later=1) == {"named.max_rows": 8, "named.new": 1}
    assert sections(whole) == {"named": {"max_rows": 7}}
    assert sections(whole, limit=8, later=1) == {"named": {"max_rows": 8, "new": 1}}


def test_an_old_name_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    class Fresh(Section):
        limit: int = renamed_field(7, was="max_rows")

    assert Fresh(limit=8) == Fresh.model_validate({"limit": 8})
    assert caplog.records == []
    assert Fresh.model_validate({"max_rows": 8}) == Fresh.model_validate({"max_rows": 8}) == Fresh(limit=8)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "max_rows" in record.getMessage()
    assert "limit" in record.getMessage()
    with pytest.raises(ValueError, match="max_rows"):
        Fresh.model_validate({"max_rows": 8, "limit": 8})
    with pytest.raises(ValueError, match=r"limit .*\btrue\b"):
        Fresh.model_validate({"max_rows": True})


def test_child_hangs_on_the_parents_content_not_on_its_key(tmp_path: Path) -> None:
    first, second = run_of(tmp_path), run_of(tmp_path, Toy(numbers=Numbers(start=1)))
    parent = make(first, count, source=SOURCE)
    child = make(first, double, count=parent, by=Value(2))
    other_source = External("source", "e" * 64, "/somewhere/data.jsonl")
    same_content = make(second, count, source=other_source)
    assert same_content.key != parent.key
    assert double(second, count=same_content, by=Value(2)).manifest == child.manifest


def test_value_is_part_of_the_key(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    parent = make(run, count, source=SOURCE)
    assert make(run, double, count=parent, by=Value(2)).key != make(run, double, count=parent, by=Value(3)).key


def test_a_stage_that_algorithms_share_has_one_line_and_own_stages_one_each(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    parent = make(run, count, source=SOURCE)
    for algorithm, factor in (("eagle3", 2), ("dflash", 3), ("dspark", 3)):
        run.algorithm = algorithm
        if algorithm == "eagle3":  # as the stage that has just made it says
            run.record(StageRecord("count", "ran", 1.0, "count", parent.key, "never built before"))
        assert count(run, source=SOURCE).key == parent.key
        make(run, double, count=parent, by=Value(factor))
        double(run, count=parent, by=Value(factor))
        run.record(StageRecord("promote", "skipped", why="the gate refused"))
    lines = [(line.name, line.status, line.algorithm) for line in run.records]
    assert lines == [
        ("count", "ran", None),
        ("double", "hit", "eagle3"),
        ("promote", "skipped", "eagle3"),
        ("double", "hit", None),
        ("promote", "skipped", "dflash"),
        ("promote", "skipped", "dspark"),
    ]
    assert "algorithm" not in run.records[0].entry().to_json()
    assert run.records[1].entry().algorithm == "eagle3"


def test_a_shared_stage_that_is_made_anew_after_damage_says_so(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    for algorithm, status in (("eagle3", "hit"), ("dflash", "rebuilt"), ("dflash", "hit")):
        run.algorithm = algorithm
        run.record(StageRecord("count", status, 1.0, "count", "k" * 64))  # type: ignore[arg-type]
    assert [(line.status, line.algorithm) for line in run.records] == [("rebuilt", None)]


def test_pending_input_makes_a_stage_pending(tmp_path: Path) -> None:
    run = run_of(tmp_path, previewing=True)
    assert double(run, count=Pending("count"), by=Value(2)) == Pending("double")
    assert run.records[0].status == "would_run"


def test_damaged_input_is_not_handed_over(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    parent = make(run, count, source=SOURCE)
    path = parent.directory() / "number.txt"
    fresh = run.store.get("count", parent.key)
    stat = path.stat()
    path.write_text("2" + path.read_text()[1:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ArtifactDamaged):
        make(run, double, count=fresh, by=Value(2))
    assert run.store.find("double", "x" * 64) is None
    assert run.store.find("count", parent.key) is None


def test_input_edited_while_it_was_read_is_refused(tmp_path: Path) -> None:
    prints = iter(["f" * 64])
    edited = External("source", "f" * 64, "/somewhere/data.jsonl", lambda: next(prints, "e" * 64))
    run = run_of(tmp_path)
    make(run, count, source=edited)  # the first look afterwards finds it unchanged
    other = run_of(tmp_path, Toy(numbers=Numbers(start=9)))
    with refused(DataError, "changed", "source", where="/somewhere/data.jsonl"):
        make(other, count, source=edited)
    assert len(list(run.store.artifacts("count"))) == 1


def test_failed_stage_leaves_no_artifact(tmp_path: Path) -> None:
    @stage(version=1)
    def failing(inputs: NoInputs, config: Toy, out: Path, job: Job) -> StageCounts:
        (out / "half.txt").write_text("half")
        raise DataError("no")

    run = run_of(tmp_path)
    with pytest.raises(DataError):
        make(run, failing)
    assert run.store.backend.list("failing") == {}


def test_what_attempts_that_did_not_finish_have_cost_is_in_the_artifact(tmp_path: Path) -> None:
    """Those that were killed (which leave what the clock's thread wrote last), and those that failed."""
    attempts: list[int] = []

    @stage(version=1)
    def flaky(inputs: NoInputs, config: Toy, out: Path, job: Job) -> StageCounts:
        attempts.append(1)
        if len(attempts) < 3:
            threading.Event().wait(0.2)
            raise DataError("no")
        return StageCounts()

    for _ in range(2):
        with pytest.raises(DataError):
            make(run_of(tmp_path), flaky)
    backend = run_of(tmp_path).store.backend
    key = next(iter(backend.list("leases/paid"))).split("/")[2]
    killed = {"seconds": 70.0, "cpu_seconds": 60.0, "gpu_seconds": 50.0}
    backend.put(f"leases/paid/{key}/killed-1.json", json.dumps(killed).encode())
    endless = json.dumps({**killed, "seconds": float("inf")}).encode()
    for number, content in enumerate((b"{", b"[1]", b'{"seconds": 1}', endless)):
        backend.put(f"leases/paid/{key}/unreadable-{number}.json", content)
    assert [account.attempt.used for account in Accounts(backend).of_run("killed")] == [killed]
    manifest = make(run_of(tmp_path), flaky).manifest
    assert [one.payer.run for one in manifest.earlier].count("killed") == 1
    assert len({one.payer for one in manifest.earlier}) == 3, "each attempt has a name of its own"
    cost = manifest.cost
    assert 70.4 <= cost["earlier_seconds"] < 80
    assert 60.0 <= cost["earlier_cpu_seconds"] < 70
    assert cost["earlier_gpu_seconds"] == 50.0
    assert cost["seconds"] < 10
    assert [path for path in backend.list("leases/paid") if "unreadable" not in path] == []
    assert "earlier_seconds" not in make(run_of(tmp_path), count, source=SOURCE).manifest.cost


def test_an_attempt_is_accounted_for_while_it_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.runtime.paid._FIRST_SECONDS", 0.05)

    backend = run_of(tmp_path).store.backend

    def interrupted() -> None:
        with paid(Accounts(backend), tmp_path, "key", Payer(run="run", attempt="1"), num_gpus=2):
            while not list(Accounts(backend).of_run("run")):
                threading.Event().wait(0.02)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    [found] = [account.attempt.used for account in Accounts(backend).of_run("run")]
    assert found["gpu_seconds"] == pytest.approx(2 * found["seconds"], abs=0.01)


def test_what_was_paid_in_another_home_is_in_the_artifact_once_its_run_is_over(tmp_path: Path) -> None:
    """Two homes, one store: a killed attempt counts wherever the artifact is made; one that goes on does not."""
    backend = run_of(tmp_path / "first").store.backend
    costs = []

    def interrupted(run_id: str) -> None:
        with paid(Accounts(backend), tmp_path / "first", "key", Payer(run=run_id, attempt="1"), num_gpus=1):
            threading.Event().wait(0.05)
            raise KeyboardInterrupt

    for run_id, is_live in (("lives", True), ("dead", False)):
        with leased(backend, f"runs/{run_id}", keys=[]) if is_live else nullcontext():
            with pytest.raises(KeyboardInterrupt):
                interrupted(run_id)
            payer = Payer(run="other", attempt="1")
            with paid(Accounts(backend), tmp_path / "second", "key", payer, num_gpus=0) as account:
                costs.append(account.earlier())
            left = {path.rpartition("/")[2].rpartition("-")[0] for path in backend.list("leases/paid/key")}
            assert left == ({"lives"} if is_live else set())
    assert costs[0] == ()
    assert {one.payer.run for one in costs[1]} == {"lives", "dead"}, "both are over by now"
    for one in costs[1]:
        assert one.cost["gpu_seconds"] == pytest.approx(one.cost["seconds"], abs=0.01)


def test_only_what_may_pass_by_itself_is_retried() -> None:
    assert is_transient(TransientError("busy"))
    assert is_transient(ConnectionResetError())
    assert is_transient(TimeoutError())
    for error in (DataError("x"), RecipeError("x"), GateFailed("x"), ValueError("x"), KeyboardInterrupt()):
        assert not is_transient(error)


@pytest.mark.parametrize("name", list(stages()))
def test_prefect_policy_of_every_stage(name: str) -> None:
    """The one retry policy, JSON results, and a cache that only repeats what the store says."""
    current = stages()[name]
    task = current.task
    assert task.name == current.name == name
    assert task.retries == RETRY_POLICY["retries"]
    assert task.retry_condition_fn is not None
    assert task.persist_result is True
    assert task.result_serializer == "json"
    assert task.cache_key_fn is not None
    assert task.description


def test_prefect_cache_key_is_none_until_the_artifact_exists(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    making = Making(run, count, {"source": SOURCE})
    assert count.task.cache_key_fn(None, {"making": making}) is None
    made = make(run, count, source=SOURCE)
    again = Making(run, count, {"source": SOURCE})
    assert made.key in count.task.cache_key_fn(None, {"making": again})


def test_of_two_makers_in_one_home_one_waits_for_the_other(tmp_path: Path) -> None:
    first, second = run_of(tmp_path), run_of(tmp_path)
    inside: list[str] = []

    def wait() -> None:
        with second.alone_with("0" * 64, "count"):
            inside.append("second")

    waiting = threading.Thread(target=wait)
    with first.alone_with("0" * 64, "count"):
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        assert inside == []
    waiting.join(10)
    assert inside == ["second"]
    assert (first.waited, second.waited >= 0.4) == (0.0, True)


def test_a_stage_that_waited_for_its_maker_finds_what_that_has_made(tmp_path: Path) -> None:
    first, second = (
        Making(run_of(tmp_path), count, {"source": SOURCE}),
        Making(run_of(tmp_path), count, {"source": SOURCE}),
    )
    found: list[Artifact | None] = []

    def wait() -> None:
        with second.alone():
            found.append(second.found)

    waiting = threading.Thread(target=wait)
    with first.alone():
        waiting.start()
        waiting.join(0.3)
        assert found == []
        make_one(first)
    waiting.join(10)
    assert [artifact and artifact.manifest for artifact in found] == [first.artifact.manifest]
    assert second.reason.status == "hit"


def test_what_a_stage_waited_for_others_is_not_its_time(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with Making(run, count, {"source": SOURCE}).recorded(), run.waiting():
        threading.Event().wait(0.2)
    assert [record.seconds < 0.1 for record in run.records] == [True]


def test_only_what_needs_a_device_takes_a_concurrency_slot() -> None:
    from deepspec.recipe import load_recipe

    made = stages()
    always = {name for name, current in made.items() if current.computes is True}
    never = {name for name, current in made.items() if current.computes is False}
    assert always == {"train", "calibrate", "evaluate"}
    assert never >= {"conversations", "tokens", "register", "promote"}

    def needs(name: str, *overrides: str, **inputs: Any) -> bool:
        defaults = dict.fromkeys(made[name].Inputs.__dataclass_fields__)
        return bool(made[name].computes(made[name].Inputs(**{**defaults, **inputs}), load_recipe("tiny", overrides)))

    assert needs("responses")
    assert not needs("responses", "data.responses.engine=endpoint", "run.endpoints=[http://b]")
    assert needs("states")
    assert not needs("states", captured=SOURCE)
    assert needs("gate", "run.device=cuda", champion=SOURCE)
    assert not needs("gate", "run.device=cpu", champion=SOURCE)
    assert not needs("gate", "run.device=cuda")


def test_a_stage_sees_the_fields_that_it_declares_and_no_others(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    @stage(version=1, reads=("numbers.start",), by_input={"source": ("numbers.later",)})
    def curious(inputs: Source, config: Toy, out: Path, job: Job) -> StageCounts:
        seen.update(vars(config.numbers))
        with pytest.raises(AttributeError):
            _ = config.numbers.unread
        return StageCounts()

    make(run_of(tmp_path), curious, source=SOURCE)
    assert seen == {"start": 1, "later": 2}


def test_an_artifact_is_looked_up_once_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_of(tmp_path)
    make(first, double, count=make(first, count, source=SOURCE), by=Value(2))
    looked: list[str] = []
    store = open_store(str(tmp_path / "store"))
    look_up = store.look_up
    monkeypatch.setattr(store, "look_up", lambda kind, key: looked.append(kind) or look_up(kind, key))
    run: Run[Any] = Run(Toy(), store, tmp_path)
    preview = run.preview()
    for looking in (preview, run):
        double(looking, count=count(looking, source=SOURCE), by=Value(2))
        for kind, key in list(run.known):
            assert looking.artifact(kind, key).kind == kind
    assert looked == ["count", "double"]
    assert [line.status for line in run.records] == ["hit", "hit"]


def test_a_stage_that_uses_up_the_budget_ends_in_a_state_of_that_name(tmp_path: Path) -> None:
    """On Prefect's page; the run ends with the error, and what it has cost is kept for the next attempt."""
    message = "2 hours were used; the budget is 1. Saved at step 3."

    @stage(version=1)
    def costly(inputs: Source, config: Toy, out: Path, job: Job) -> StageCounts:
        raise BudgetExceeded(message, where="budget.max_hours", remedy="Raise it.")

    run = run_of(tmp_path)
    making = Making(run, costly, {"source": SOURCE})
    state = make_one(making)
    assert (state.name, state.is_completed()) == ("BudgetExhausted", True)
    assert message in state.message
    assert isinstance(making.over_budget, BudgetExceeded)
    assert making.found is None
    assert run.store.backend.list(f"leases/paid/{making.key}")
