"""What a run does about damage that a reader in another process has met, and about signals."""

import json
import subprocess
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, Self

import pytest

from deepspec.errors import ArtifactDamaged, BudgetExceeded
from deepspec.store import open_store
from tasks.runtime import execute
from tasks.runtime.display import Hidden
from tasks.runtime.execute import run_or_reuse
from tasks.runtime.flow import Flow, Outcome, flow
from tasks.runtime.prefect import flow as prefect_flow
from tasks.runtime.record.result import RecipeRun
from tasks.runtime.records import StageRecord
from tasks.runtime.run import Run
from tests.fixtures.store import KEY, ingredients, put


class Sayings(Hidden):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


class Directly:
    """A flow's run without Prefect."""

    def __init__(self, run: Run[Any], flow: Flow) -> None:
        self._run, self._flow = run, flow

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, _: object) -> None:
        self.outcome = self._flow(self._run)


@pytest.mark.parametrize("where", ["in the store", "on the way"])
def test_damage_told_by_a_reader_is_condemned_only_if_the_store_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    store = open_store(str(tmp_path / "store"))
    artifact = put(store, ingredients(), {"data": b"right"})
    display = Sayings()
    run: Run[Any] = Run(None, store, tmp_path, display=display)  # type: ignore[type-var]
    run.on_lease = lambda _: None  # it has begun
    found: list[bool] = []

    @flow
    def reading(run: Run[Any]) -> Outcome:
        if run.previewing:
            run.record(StageRecord("tokens", "would_run"))
            return Outcome({})
        found.append(run.store.find("tokens", KEY) is not None)
        if len(found) == 1:
            if where == "in the store":
                (artifact.directory() / "data").write_bytes(b"wrong")
            raise ArtifactDamaged("An artifact is damaged: its bytes changed.", kind="tokens", key=KEY, file="data")
        return Outcome({"made": artifact})

    monkeypatch.setattr(prefect_flow, "FlowRun", Directly)
    with ExitStack() as stack:
        part = RecipeRun(None, tracking_run="tracked")  # type: ignore[arg-type]
        assert run_or_reuse(run, reading, part, stack).artifacts == {"made": artifact}
    assert found == [True, where == "on the way"]
    assert ("It will be rebuilt" in display.said[0]) == (where == "in the store")
    assert ("the artifact is not" in display.said[0]) == (where == "on the way")


def decided(run: Run[Any], *records: StageRecord) -> list[str]:
    """What is called in the tracker while a flow runs whose preview has come to these records."""
    asked: list[str] = []

    @flow
    def deciding(run: Run[Any]) -> Outcome:
        for record in records if run.previewing else ():
            run.record(record)
        return Outcome({}, "no_change")

    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefect_flow, "FlowRun", Directly)
        patch.setattr(execute.prefect_server, "server", lambda _: nullcontext())
        patch.setattr(execute, "start_tracking", lambda *_: asked.append("run"))
        run_or_reuse(run, deciding, RecipeRun(None), stack)  # type: ignore[arg-type]
        assert (run.on_lease is not None) == bool(asked)
        if not asked and run.on_shared_server:
            run.on_making()  # something was damaged after all
            assert asked == ["run"]
            return []
    return asked


@pytest.mark.parametrize("on_shared_server", [True, False])
def test_only_a_run_that_makes_something_is_tracked(tmp_path: Path, *, on_shared_server: bool) -> None:
    """On a shared Prefect server, where it is a flow run all the same; and one that has to make something after all."""
    for status, tracked in (("hit", False), ("skipped", False), ("would_run", True)):
        run: Run[Any] = Run(None, open_store(str(tmp_path / "store")), tmp_path, on_shared_server=on_shared_server)  # type: ignore[type-var]
        record = StageRecord("tokens", status)  # type: ignore[arg-type]
        assert bool(decided(run, record)) == tracked
        if run.alive is not None:
            run.alive.end()


@pytest.mark.parametrize("reached", [True, False])
def test_a_budget_that_is_used_up_is_a_status_and_no_failure(tmp_path: Path, *, reached: bool) -> None:
    """Of the recipe that was being run; those after it were not reached."""
    from deepspec.recipe import load_recipe

    recipes = [load_recipe("tiny", [f"name={name}"]) for name in ("one", "two")]

    @flow
    def spending(run: Run[Any]) -> Outcome:
        if reached and run.recipe.name == "one":
            return Outcome({}, "no_change")
        raise BudgetExceeded("2 hours were used.", where="budget.max_hours", remedy="Raise it.")

    result = execute.execute(spending, recipes, open_store(str(tmp_path / "store")), tmp_path, name="both")
    assert isinstance(result.error, BudgetExceeded)
    assert [part.status for part in result.parts] == (
        ["no_change", "budget_exhausted"] if reached else ["budget_exhausted", "failed"]
    )


STOPPED = """
import os, signal, sys, time
from pathlib import Path
from deepspec.recipe import load_recipe
from deepspec.store import open_store
from tasks.runtime.execute import execute
from tasks.runtime.flow import flow
from tasks.runtime.record.run_record import record_of, write_record

home = Path(sys.argv[1])

@flow
def stopped(run):
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    time.sleep(60)

def leave(result):
    write_record(record_of(result), home)

recipe = load_recipe("tiny")
result = execute(stopped, [recipe], open_store(str(home / "store")), home, name="tiny", interrupted=leave)
leave(result)
if sys.argv[3] == "hangs":
    time.sleep(60)
"""


@pytest.mark.parametrize(("name", "then"), [("SIGINT", "ends"), ("SIGTERM", "ends"), ("SIGTERM", "hangs")])
def test_a_run_that_a_signal_ends_is_interrupted_and_not_failed(tmp_path: Path, name: str, then: str) -> None:
    """In a process of its own, which the signal goes to; one that hangs is ended after three seconds."""
    done = subprocess.run([sys.executable, "-c", STOPPED, str(tmp_path), name, then], check=False, timeout=60)
    assert done.returncode == (130 if then == "hangs" else 0)
    record = json.loads((tmp_path / "last-run.json").read_text())
    assert record["status"] == "interrupted"
    assert record["failure"]["error"] == "KeyboardInterrupt"


def test_a_run_begins_as_often_as_it_has_flows_and_shows_one_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a shared server a flow in which all was found begins, too; and then the next one, which makes something."""
    run: Run[Any] = Run(None, open_store(str(tmp_path / "store")), tmp_path, name="tiny")  # type: ignore[type-var]
    monkeypatch.setattr(execute.prefect_server, "server", lambda _: nullcontext())
    monkeypatch.setattr(execute, "start_tracking", lambda *_: None)
    with ExitStack() as stack:
        part = RecipeRun(None)  # type: ignore[arg-type]
        execute.begin(run, part, stack, makes_something=False)
        execute.begin(run, part, stack, makes_something=True)
        assert [note.stem for note in (tmp_path / "running").glob("*.json")] == [run.run_id]
        with execute.ended_after(run):
            pass
    assert not list((tmp_path / "running").iterdir())
