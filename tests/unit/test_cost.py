"""What things have cost: each attempt once, whoever paid, killed ones too; by draft, by run, by month."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from deepspec import history
from deepspec.cost.accounts import Accounts, content_of, path_of
from deepspec.cost.attempts import attempts_at, attempts_in
from deepspec.cost.making import making_cost, registration_of
from deepspec.cost.months import OUTSIDE, month_cost, run_cost
from deepspec.cost.prices import Prices
from deepspec.errors import BadArgument
from deepspec.recipe import Recipe, load_recipe
from deepspec.record import Cost, RunRecord, StageEntry
from deepspec.registry.identity import DRAFT_KINDS
from deepspec.store import Artifact, Backend, Ingredients, Manifest, Parent, Store, artifact_key, open_store
from deepspec.store.manifest import EarlierAttempt, Payer
from deepspec.store.records import seal, unseal
from deepspec.usage import USED, added_up, count, counted_since, counted_so_far
from flows.cli.cost import cost
from tasks.runtime.record.alive import Alive, end_dead
from tasks.runtime.record.result import RecipeRun, Result
from tasks.runtime.record.run_record import record_of
from tasks.runtime.run import Run
from tests.fixtures.refused import refused
from tests.fixtures.s3 import S3Server

NIGHT = "20261203-020000-aaaaaa"
LATER = "20261204-020000-bbbbbb"


def payer(run: str = NIGHT, attempt: str = "1", **fields: Any) -> Payer:
    return Payer(**{"run": run, "attempt": attempt, "model": "tiny", **fields})


def made(
    store: Store, kind: str, by: Payer | None = None, *, gpu: float = 0.0, earlier: Any = (), **parents: Artifact
) -> Artifact:
    """An artifact as a stage leaves it."""
    origin = {name: Parent(kind=item.kind, key=item.key, digest=item.digest) for name, item in parents.items()}
    of = Ingredients(kind, 1, {"gpu": gpu}, {name: item.digest for name, item in parents.items()})
    with store.write(kind, of, origin) as writing:
        (writing.directory / "data").write_bytes(b"123")
        writing.made_by, writing.gpu_seconds, writing.earlier = by, gpu, tuple(earlier)
    return writing.artifact


def record(run_id: str = NIGHT, status: str = "promoted", **fields: Any) -> RunRecord:
    empty: dict[str, Any] = {"recipe": "tiny", "seconds": 90.0, "peak_rss_bytes": 1, "stages": (), "report": None}
    cost = Cost(cpu_seconds=3600.0, gpu_seconds=7200.0, put_requests=5)
    return RunRecord(
        **{"run_id": run_id, "status": status, "cost": cost, "registered_models": ("tiny",), **empty, **fields}
    )


def prices(gpu: float, currency: str) -> dict[str, Any]:
    return {"run": {"price_per_gpu_hour": gpu, "price_per_cpu_hour": None, "currency": currency}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def test_cost_is_no_part_of_what_an_artifact_is(tmp_path: Path) -> None:
    """Two stores: one artifact that was expensive and one that was not have the same key and digest."""
    first = made(open_store(str(tmp_path / "a")), "tokens")
    killed = EarlierAttempt(payer=payer("x"), cost={"cpu_seconds": 5.0})
    second = open_store(str(tmp_path / "b"))
    with second.write("tokens", Ingredients("tokens", 1, {"gpu": 0.0}, {})) as writing:
        (writing.directory / "data").write_bytes(b"123")
        writing.made_by, writing.gpu_seconds, writing.earlier = payer(), 9.0, (killed,)
    assert (writing.artifact.key, writing.artifact.digest) == (first.key, first.digest)
    assert artifact_key(Ingredients("tokens", 1, {"gpu": 0.0}, {})) == first.key
    assert writing.artifact.manifest.cost["earlier_cpu_seconds"] == 5.0


def test_a_manifest_of_an_earlier_deepspec_says_what_it_can(store: Store) -> None:
    """It names no payer, has GPU seconds among its counts, and only the sum of earlier attempts."""
    content = unseal(seal(made(store, "train").manifest.to_json()))
    cost = {"seconds": 3.0, "cpu_seconds": 2.0, "bytes_written": 3.0, "earlier_cpu_seconds": 7.0}
    older = {name: value for name, value in content.items() if name not in ("made_by", "earlier")}
    manifest = Manifest.from_bytes(seal({**older, "cost": cost, "counts": {"gpu_seconds": 4.0}}), "manifest")
    killed, finished = attempts_in(manifest)
    assert (killed.payer, killed.used, killed.finished) == (None, {"cpu_seconds": 7.0}, False)
    assert (finished.payer, finished.finished) == (None, True)
    assert finished.used == {"seconds": 3.0, "cpu_seconds": 2.0, "gpu_seconds": 4.0, "bytes_written": 3.0}


def test_an_attempt_that_stands_in_an_account_and_in_a_manifest_counts_once(store: Store) -> None:
    """The process was killed between the two."""
    draft = made(
        store, "train", payer(attempt="2"), gpu=5.0, earlier=[EarlierAttempt(payer=payer(), cost={"gpu_seconds": 3.0})]
    )
    for number, used in (("1", 3.0), ("2", 5.0), ("3", 2.0)):
        by = payer(attempt=number)
        store.backend.put(path_of(draft.key, by), content_of(by, {"gpu_seconds": used}, "home"))
    found = making_cost(store, [draft], DRAFT_KINDS, None)
    assert found.cost["gpu_seconds"] == 10.0
    assert [(one.run, one.finished) for one in found.attempts] == [(NIGHT, False), (NIGHT, True), (NIGHT, False)]


def test_what_was_made_twice_because_it_was_damaged_cost_twice(store: Store) -> None:
    first = made(store, "train", payer(attempt="1"), gpu=5.0)
    first.condemn("test")
    second = made(store, "train", payer(LATER), gpu=5.0)
    assert second.number == 2
    assert [(one.payer and one.payer.run) for one in attempts_at(second)] == [NIGHT, LATER]
    assert making_cost(store, [second], DRAFT_KINDS, None).cost["gpu_seconds"] == 10.0


def test_what_a_draft_cost_is_told_by_stage_with_who_paid(store: Store) -> None:
    """Its evaluation counts; the champion it started from, and what only that needed, does not."""
    tokens = made(store, "tokens", payer("20261130-020000-cccccc"), gpu=1.0)
    old_states = made(store, "states", payer(LATER), gpu=400.0)
    champion = made(store, "train", payer(LATER), gpu=500.0, tokens=tokens, states=old_states)
    euro = {"price_per_gpu_hour": 3.6, "currency": "EUR"}
    draft = made(store, "train", payer(**euro), gpu=1000.0, tokens=tokens, init=champion)
    evaluation = made(store, "evaluate", payer(**euro), gpu=10.0, draft=draft)
    registration = made(store, "register", payer(), draft=draft, evaluation=evaluation)
    assert registration_of(store, champion) is None
    found = registration_of(store, draft)
    assert found is not None
    assert found.key == registration.key
    making = making_cost(store, [draft, found], DRAFT_KINDS, None)
    rows = {one.stage: one for one in making.attempts}
    assert sorted(rows) == ["evaluate", "register", "tokens", "train"]
    assert making.cost["gpu_seconds"] == 1011.0
    assert rows["tokens"].run == "20261130-020000-cccccc"
    assert (rows["tokens"].shared_with, rows["train"].shared_with) == (1, 0)
    assert making.amounts == {"EUR": 1.01}
    assert making.num_unpriced == 2
    now = making_cost(store, [draft, found], DRAFT_KINDS, Prices(7.2, None, "USD"))
    assert (now.amounts, now.num_unpriced) == ({"USD": 2.022}, 0)


def test_an_ancestor_that_is_gone_is_named(store: Store) -> None:
    tokens = made(store, "tokens", payer())
    draft = made(store, "train", payer(), tokens=tokens)
    for path in store.backend.list("tokens"):
        store.backend.delete(path)
    assert making_cost(store, [draft], DRAFT_KINDS, None).absent == (f"tokens/{tokens.key}",)


def test_a_month_is_told_by_model_and_status_and_no_two_currencies_meet(store: Store) -> None:
    runs = [
        record("20261130-235959-aaaaaa"),
        record(NIGHT, resolved_recipe=prices(2.0, "EUR")),
        record(LATER, "refused", resolved_recipe=prices(3.0, "USD")),
        record("20261205-020000-cccccc", "failed", registered_models=("other",), resolved_recipe=prices(2.0, "EUR")),
        record("20261206-020000-dddddd", "no_change", cost=Cost(cpu_seconds=0.0)),
        record("20270101-000000-eeeeee"),
    ]
    for run in runs:
        history.publish(store.backend, run)
    found = month_cost(store.backend, "2026-12", "model")
    assert [(group.name, group.num_runs) for group in found.groups] == [("other", 1), ("tiny", 3)]
    assert found.total.statuses == {"failed": 1, "no_change": 1, "promoted": 1, "refused": 1}
    assert (found.total.cost["gpu_seconds"], found.total.cost["put_requests"]) == (3 * 7200.0, 15)
    assert found.total.amounts == {"EUR": 8.0, "USD": 6.0}
    assert found.total.num_unpriced == 1
    assert (found.in_vain.num_runs, found.in_vain.amounts) == (2, {"EUR": 4.0, "USD": 6.0})
    by_status = month_cost(store.backend, "2026-12", "status", Prices(1.0, None, "CHF"))
    assert {group.name: group.amounts["CHF"] for group in by_status.groups} == {
        "failed": 2.0,
        "no_change": 0.0,
        "promoted": 2.0,
        "refused": 2.0,
    }
    assert month_cost(store.backend, "2026-11", "model").total.num_runs == 1
    assert month_cost(store.backend, "2026-10", "model").total.num_runs == 0


def test_by_stage_the_parts_are_the_whole(store: Store) -> None:
    stages = tuple(
        StageEntry(name=name, status=status, seconds=1.0, kind=name, key="k", why="", cost=used)
        for name, status, used in (
            ("tokens", "ran", {"cpu_seconds": 600.0, "put_requests": 2}),
            ("train", "failed", {"cpu_seconds": 2000.0, "gpu_seconds": 7200.0}),
        )
    )
    hit = StageEntry(name="states", status="hit", seconds=0.0, kind="states", key="k", why="")
    history.publish(store.backend, record(NIGHT, "failed", stages=(*stages, hit), resolved_recipe=prices(1.0, "USD")))
    found = month_cost(store.backend, "2026-12", "stage")
    assert [group.name for group in found.groups] == ["tokens", "train", OUTSIDE]
    assert found.groups[1].statuses == {"failed": 1}
    for name in ("cpu_seconds", "gpu_seconds", "put_requests", "seconds"):
        assert sum(group.cost.get(name, 0.0) for group in found.groups) == pytest.approx(found.total.cost[name])
    assert sum(group.amounts["USD"] for group in found.groups) == pytest.approx(found.total.amounts["USD"])
    assert run_cost(store.backend, NIGHT).stages == found.groups


@pytest.mark.parametrize(
    "month", ["2026", "2026-13", "2026-00", "0000-01", "december", "2026-12-01", "9999-12", "٢٠٢٦-١٢"]
)
def test_what_is_no_month_is_refused(store: Store, month: str) -> None:
    with refused(BadArgument, month, where="--month"):
        month_cost(store.backend, month, "model")


def test_a_store_without_history_and_a_run_that_it_lacks_are_named(store: Store) -> None:
    with refused(BadArgument, "no history", where=store.backend.location):
        month_cost(store.backend, "2026-12", "model")
    with refused(BadArgument, "no history", where=store.backend.location):
        run_cost(store.backend, NIGHT)
    history.publish(store.backend, record())
    with refused(BadArgument, LATER, where=store.backend.location):
        run_cost(store.backend, LATER)


def test_requests_to_object_storage_are_counted_by_kind(
    moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """moto counts what came in, too: the two agree."""
    moto.enter(monkeypatch)
    backend = open_store(f"s3://{moto.bucket}/{tmp_path.name}", cache=tmp_path).backend
    earlier = counted_so_far()
    backend.put("leases/a", b"12345")
    assert backend.read("leases/a") == b"12345"
    assert list(backend.list("leases")) == ["leases/a"]
    backend.delete("leases/a")
    assert counted_since(earlier) == {
        "bytes_read": 5,
        "put_requests": 1,
        "get_requests": 1,
        "list_requests": 1,
        "delete_requests": 1,
    }
    store = open_store(f"s3://{moto.bucket}/{tmp_path.name}", cache=tmp_path)
    cost = made(store, "tokens", payer()).manifest.cost
    assert cost["put_requests"] >= 1
    assert cost["list_requests"] >= 1


def test_only_what_has_a_name_is_counted() -> None:
    with pytest.raises(ValueError, match="post_requests"):
        count("post_requests")
    assert added_up([{"seconds": 1.0, "tokens": 5.0}, {"seconds": 0.2503}]) == {"seconds": 1.25}


def test_a_run_that_is_interrupted_says_what_it_did_not_finish(tmp_path: Path) -> None:
    """Ctrl-C ends the process in the middle of a stage: the account is what is known of it."""
    recipe = load_recipe("tiny")
    run: Run[Any] = Run(recipe, open_store(str(tmp_path / "store")), tmp_path, run_id=NIGHT, name="tiny")
    by = payer(attempt="9")
    run.begin_making("train", "k" * 64)
    run.store.backend.put(path_of("k" * 64, by), content_of(by, {"seconds": 7.0, "gpu_seconds": 14.0}, "home"))
    found = record_of(Result(run, "tiny", [RecipeRun(recipe, status="interrupted")]))
    assert found.cost.gpu_seconds == 14.0
    assert [(stage.name, stage.status, stage.cost) for stage in found.stages] == [
        ("train", "failed", {"seconds": 7.0, "gpu_seconds": 14.0})
    ]


@pytest.fixture
def shown(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What `deepspec cost` prints: on stdout, and on stderr."""
    monkeypatch.setenv("DEEPSPEC_HOME", str(tmp_path))
    monkeypatch.setenv("DEEPSPEC_STORE", store.backend.location)

    def call(*arguments: Any, **options: Any) -> tuple[str, str]:
        cost(*arguments, **{"by": "model", "currency": "USD", **options})
        printed = capsys.readouterr()
        return printed.out, printed.err

    return call


def test_the_command_says_what_has_no_price_and_what_was_in_vain(store: Store, shown: Any) -> None:
    history.publish(store.backend, record(NIGHT, resolved_recipe=prices(2.0, "EUR")))
    history.publish(store.backend, record(LATER, "failed"))
    out, err = shown(month="2026-12")
    assert "1 of 2 runs brought no new champion and took 50% of the GPU hours and 50% of the processor hours." in out
    assert "4.00 EUR" in out
    assert "endpoints" not in out, "a column in which nothing stands"
    assert "1 of 2 runs have no prices" in err
    out, err = shown(month="2026-12", price_gpu_hour=1.0)
    assert "4.00 USD" in out
    assert err == ""
    assert LATER in shown(LATER)[0]


def test_the_command_says_who_paid_and_what_is_shared(store: Store, shown: Any) -> None:
    tokens = made(store, "tokens", None)
    made(store, "train", payer(LATER), gpu=2.0, tokens=tokens).condemn("made twice, and one draft")
    made(store, "train", payer(LATER), gpu=2.0, tokens=tokens)
    killed = EarlierAttempt(payer=payer(LATER), cost={"gpu_seconds": 7200.0})
    draft = made(store, "train", payer(), gpu=1.0, tokens=tokens, earlier=[killed])
    out, err = shown(f"train/{draft.key[:12]}")
    lines = {line.split()[2]: line for line in out.splitlines()[2:-1]}
    assert "did not finish" in lines[LATER]
    assert "2.00 h" in lines[LATER]
    assert lines[NIGHT].startswith("train")
    assert "not recorded" in out
    assert "shared with 1 other draft" in out
    assert "3 of 3 attempts have no prices" in err
    document = json.loads(shown(f"train/{draft.key[:12]}", as_json=True)[0])
    assert document["cost"]["gpu_seconds"] == 7201.0
    assert set(document["cost"]) == set(USED)


@pytest.mark.parametrize(
    ("arguments", "options", "named", "where"),
    [
        (["tiny"], {}, "tiny", "NAME"),
        (["models:/tiny/1"], {"month": "2026-12"}, "a name and a month", "--month"),
        ([], {"by": "week"}, "week", "--by"),
    ],
)
def test_what_the_command_cannot_answer_is_named(
    shown: Any, arguments: list[str], options: dict[str, Any], named: str, where: str
) -> None:
    with refused(BadArgument, named, where=where):
        shown(*arguments, **options)


BURNS = """
import sys, time
from pathlib import Path
from deepspec.recipe import load_recipe
from deepspec.store import Ingredients, artifact_key, open_store
from deepspec.usage import Usage
from tasks.runtime import paid
from flows.cli.cost import cost
from tasks.runtime.record.alive import Alive
from tasks.runtime.run import Run

home, run_id = Path(sys.argv[1]), sys.argv[2]
paid._FIRST_SECONDS = paid._EVERY_SECONDS = 0.2
recipe = load_recipe("tiny", ["run.price_per_cpu_hour=3600", "run.currency=EUR"])
run = Run(recipe, open_store(str(home / "store")), home, run_id=run_id, name="tiny")
run.recipes, run.models, run.usage = (recipe,), ("tiny",), Usage()
run.alive = Alive(run)
key = artifact_key(Ingredients("train", 1, {}, {}))
end = time.process_time() + 0.5
while time.process_time() < end:  # outside stages
    pass
run.begin_making("train", key)
with paid.paid(run.accounts, home, key, paid.payer_of(run), num_gpus=2):
    print("works", flush=True)
    while True:
        pass
"""


def killed(home: Path, run_id: str) -> tuple[float, float]:
    """A run is killed while it trains; processor seconds as the kernel had them, and what its account said last."""
    backend = open_store(str(home / "store")).backend
    with subprocess.Popen([sys.executable, "-c", BURNS, str(home), run_id], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"works\n"
        while not (left := used_so_far(backend, run_id)) or left < 0.5:
            time.sleep(0.02)
        process.send_signal(signal.SIGSTOP)
        while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.02)
        times, left = psutil.Process(process.pid).cpu_times(), used_so_far(backend, run_id)
        process.kill()
    return times.user + times.system, left


def used_so_far(backend: Backend, run_id: str) -> float:
    """Processor seconds of the attempts that the store has accounts of."""
    return sum(account.attempt.used.get("cpu_seconds", 0.0) for account in Accounts(backend).of_run(run_id))


def finished(home: Path, run_id: str) -> RunRecord:
    """A run that finds the dead one's work, makes the draft, and ends."""
    from deepspec.usage import Usage
    from tasks.runtime import paid
    from tasks.runtime.records import StageRecord

    recipe: Recipe = load_recipe("tiny", ["run.price_per_cpu_hour=3600", "run.currency=EUR"])
    run: Run[Any] = Run(recipe, open_store(str(home / "store")), home, run_id=run_id, name="tiny")
    run.recipes, run.models, run.usage = (recipe,), ("tiny",), Usage()
    run.alive = Alive(run)
    made_of = Ingredients("train", 1, {}, {})
    by = paid.payer_of(run)
    account_of = paid.paid(run.accounts, home, artifact_key(made_of), by, num_gpus=0)
    with account_of as account, run.store.write("train", made_of) as writing:
        (writing.directory / "draft").write_bytes(b"1")
        writing.made_by, writing.earlier = by, account.earlier()
        account.close_with(writing)
    run.record(StageRecord("train", "ran", 1.0, "train", writing.artifact.key))
    result = Result(run, "tiny", [RecipeRun(recipe, status="promoted", outcome={"draft": writing.artifact})])
    result.cpu_seconds = run.usage.cpu_seconds()
    found = record_of(result)
    end_dead(run)
    run.alive.end()
    history.publish(run.store.backend, found)
    return found


@pytest.mark.parametrize("elsewhere", [False, True], ids=["its home", "another home"])
def test_what_a_killed_run_paid_is_counted_once(tmp_path: Path, elsewhere: bool) -> None:
    """Two processes are killed (6 s): the draft that is made in the end, and the month, have what all of them used.

    Where another home finishes the draft first, the dead runs are ended later, when no account is left of them. The
    processor time that the kernel knew when it killed is met but for what was used after the last entry in an account.
    """
    first, second = tmp_path / "first", tmp_path / "second"
    (second if elsewhere else first).mkdir(parents=True)
    if elsewhere:
        second.mkdir(exist_ok=True)
        first.mkdir()
        (second / "store").symlink_to(first / "store")
    measured = [killed(first, run_id) for run_id in (NIGHT, LATER)]
    last = finished(second if elsewhere else first, "20261205-020000-cccccc")
    if elsewhere:
        store = open_store(str(first / "store"))
        end_dead(Run(None, store, first, run_id="20261206-020000-dddddd"))  # type: ignore[type-var]
    backend = open_store(str(first / "store")).backend
    assert list(Accounts(backend).of_run(NIGHT)) == []
    runs = {one.run_id: one for one in history.records(backend)}
    assert {run_id: one.status for run_id, one in runs.items()} == {
        NIGHT: "interrupted",
        LATER: "interrupted",
        last.run_id: "promoted",
    }
    for run_id, (kernel, account) in zip((NIGHT, LATER), measured, strict=True):
        found = runs[run_id].cost.cpu_seconds
        assert account + 0.5 <= found + 0.1, "what it used before the stage counts, too"
        assert found <= kernel + 0.1
        assert runs[run_id].cost.gpu_seconds > 0
        assert runs[run_id].cost.amount == pytest.approx(found, abs=0.06)
    month = month_cost(backend, "2026-12", "stage")
    whole = sum(one.cost.cpu_seconds for one in runs.values())
    assert month.total.cost["cpu_seconds"] == pytest.approx(whole, abs=1e-6)
    draft = open_store(str(first / "store")).newest_first("train")[0]
    making = making_cost(open_store(str(first / "store")), [draft], DRAFT_KINDS, None)
    assert [one.run for one in making.attempts] == [NIGHT, LATER, last.run_id]
    by_stage = {group.name: group for group in month.groups}
    for name in ("cpu_seconds", "gpu_seconds", "bytes_written"):
        assert by_stage["train"].cost.get(name, 0.0) == pytest.approx(making.cost.get(name, 0.0), abs=0.002)
    assert by_stage["train"].num_runs == 3
    assert last.making_cost is not None
    assert last.making_cost.cpu_seconds == pytest.approx(making.cost["cpu_seconds"], abs=0.06)
