"""What a night decides: whether there is news, what to train from, how far the budget reaches, what a target may be."""

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Home

WARM = ("--set", "train.init_from=champion")
UNBEATABLE = ("--set", "gates.min_tau_gain=50")


def tracked(home: Home) -> int:
    """How many runs MLflow's database has."""
    with sqlite3.connect(home.path / "mlflow.db") as database:
        return int(database.execute("select count(*) from runs").fetchone()[0])


def previewed(home: Home, *options: str) -> dict[str, Any]:
    """What a dry run says."""
    return dict(json.loads(home.run("run", "tiny", *options, "--dry-run", "--json").out))


def changed(home: Home, source: Path) -> tuple[str, str]:
    """The option that reads other conversations: all but the last."""
    rows = (home.path / "tiny" / "corpus" / "conversations.jsonl").read_text().splitlines(keepends=True)
    source.write_text("".join(rows[:-1]))
    return ("--set", f"data.source={source}")


def test_no_news_is_no_run_in_mlflow_and_no_report(warm: Home) -> None:
    """Also not with a warm start: a champion that was just promoted is no reason to train. The dry run agrees."""
    before, report = tracked(warm), warm.record()["report"]
    assert previewed(warm, *WARM)["status"] == "no_change"
    for options in ((), WARM):
        warm.run("run", "tiny", *options)
        record = warm.record()
        assert (record["status"], warm.ran()) == ("no_change", [])
        assert record["report"] == report
        assert not (warm.path / "runs" / record["run_id"] / "report").exists()
        assert tracked(warm) == before
    assert "Nothing is new since the champion models:/tiny/1" in record["notes"][0]


@pytest.mark.full  # a training, and six commands
def test_new_data_are_learned_from_the_champion_once_and_a_refusal_stays_one(warm: Home, tmp_path: Path) -> None:
    """Two runs: the first trains and is refused, the second finds that. Over ten seconds: the first makes all anew."""
    options = (*changed(warm, tmp_path / "conversations.jsonl"), *WARM, *UNBEATABLE)
    assert previewed(warm, *options)["notes"] == ["Trained from the champion models:/tiny/1."]
    warm.run("run", "tiny", *options, code=3)
    first = warm.record()
    assert first["status"] == "refused"
    trained = next(stage for stage in first["stages"] if stage["name"] == "train")
    assert trained["status"] == "ran"
    manifest = json.loads(warm.run("artifacts", "show", f"train/{trained['key']}").out)
    assert (
        manifest["parents"]["init"]["key"]
        == json.loads(warm.run("models", "history", "tiny", "--json").out)[-1]["champion"]["key"]
    )

    before = tracked(warm)
    expected = previewed(warm, *options)
    said = warm.run("run", "tiny", *options, code=3)
    record = warm.record()
    assert [name for name in warm.ran() if name != "promote"] == []
    assert record["status"] == expected["status"] == "no_change"
    assert record["verdict"] == first["verdict"]
    assert record["notes"] == expected["notes"]
    (note,) = [note for note in record["notes"] if note.startswith("Refused on ")]
    assert first["run_id"] in note
    assert "nothing was measured again" in " ".join(said.out.split())
    assert tracked(warm) == before


def test_a_first_night_needs_no_champion(warm: Home) -> None:
    assert "no champion" in previewed(warm, *WARM, "--set", "registry.model=new")["notes"][0]
    warm.run("run", "tiny", *WARM, "--set", "registry.model=new")
    record = warm.record()
    assert (record["status"], record["model"]["uri"]) == ("promoted", "models:/new/1")
    assert warm.statuses()["train"] == "hit"
    assert "new had no champion: trained from new weights." in record["notes"]


@pytest.mark.full  # two trainings of seconds
def test_a_budget_that_is_used_up_ends_the_training_where_it_can_go_on(warm: Home) -> None:
    """Three seconds of an hour-long training; again, with nothing left; and with a second more.

    Over ten seconds: trainings that have to last long enough to be ended.
    """
    long = ("--set", "train.num_steps=100000", "--set", "train.validate_every_steps=null")
    seconds = ("--set", f"budget.max_hours={3 / 3600}")
    said = warm.run("run", "tiny", *long, *seconds, code=2)
    record = warm.record()
    assert record["status"] == "budget_exhausted"
    assert record["failure"]["stage"] == "train"
    assert "of 100000" in record["error"]
    assert "budget.max_hours" in said.err
    assert not {"register", "gate", "promote"} & set(warm.statuses())
    train = next(stage for stage in record["stages"] if stage["name"] == "train")
    attempts = warm.path / "work" / train["key"] / "attempts"
    saved = json.loads((attempts / "0001" / "result.json").read_text())["steps"]
    assert (warm.path / "work" / train["key"] / "checkpoints" / f"step-{saved:09d}" / "manifest.json").is_file()
    with sqlite3.connect(warm.path / "mlflow.db") as database:
        ended = database.execute("select count(*) from runs where status = 'RUNNING'").fetchone()
    assert ended == (0,)

    warm.run("run", "tiny", *long, *seconds, code=2)  # what it has cost so far counts
    assert "Nothing was trained." in warm.record()["error"]
    assert len(list(attempts.iterdir())) == 1

    accounts = (warm.path / "store" / "leases" / "paid" / train["key"]).glob("*.json")
    spent = sum(float(json.loads(path.read_text())["seconds"]) for path in accounts)
    warm.run("run", "tiny", *long, "--set", f"budget.max_hours={(spent + 3) / 3600}", code=2)
    assert json.loads((attempts / "0002" / "ready.json").read_text())["step"] == saved


@pytest.mark.full  # three trainings
def test_a_target_that_was_replaced_is_measured_and_a_person_promotes(warm: Home, tmp_path: Path) -> None:
    """The champion has to be beaten on the new target; over ten seconds: two trainings with all that follows."""
    contest = ("--set", "registry.model=contest")
    warm.run("run", "tiny", *contest, "--set", "name=beginner", "--set", "train.num_steps=1")
    other = tmp_path / "target"
    shutil.copytree(warm.path / "tiny" / "target", other)
    (other / "generation_config.json").write_text(json.dumps({"temperature": 0.9, "do_sample": True}))
    options = (*contest, "--set", f"target.path={other}")
    refused = warm.run("run", "tiny", *options, "--set", "registry.on_new_target=refuse", code=2)
    assert "another target or tokenizer" in " ".join(refused.err.split())
    assert "The target was replaced" in previewed(warm, *options)["notes"][0]

    said = warm.run("run", "tiny", *options)
    record = warm.record()
    assert record["status"] == "awaiting_approval"
    assert record["verdict"]["champion"] is not None
    assert "The target was replaced: the champion contest/1" in record["notes"][0]
    assert "deepspec promote models:/contest/2" in " ".join(said.out.split())
    history = json.loads(warm.run("models", "history", "contest", "--json").out)
    assert [entry["champion"]["version"] for entry in history] == ["1"]
    warm.run("promote", "models:/contest/2", "--reason", "the servers have the new target")
    warm.run("run", "tiny", *options)
    assert warm.record()["status"] == "no_change"
    assert "notes" not in warm.record()


def test_a_target_of_another_tokenizer_is_refused(warm: Home, tmp_path: Path) -> None:
    """Its weights fit: two tokens have changed their ids."""
    other = tmp_path / "target"
    shutil.copytree(warm.path / "tiny" / "target", other)
    written = json.loads((other / "tokenizer.json").read_text())
    ids = written["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (other / "tokenizer.json").write_text(json.dumps(written))
    done = warm.run("run", "tiny", "--set", f"target.path={other}", code=2)
    assert "another target or tokenizer" in " ".join(done.err.split())
    assert "registry.model" in done.err
    assert "train" not in warm.statuses()


@pytest.mark.parametrize("vanished", ["file", "folder", "rows"])
def test_a_source_that_vanished_ends_the_night_before_anything(warm: Home, tmp_path: Path, vanished: str) -> None:
    """The champion stays, and the record says which source it was."""
    source = tmp_path / "source"
    option = changed(warm, source)
    if vanished == "rows":
        source.write_text("")
    else:
        source.unlink()
        if vanished == "folder":
            source.mkdir()
    history = warm.run("models", "history", "tiny", "--json").out
    done = warm.run("run", "tiny", *option, *WARM, code=2)
    record = warm.record()
    assert record["status"] == "failed"
    assert str(source) in " ".join(record["error"].split())
    assert str(source) in done.err.replace("\n", "")
    assert not {"train", "gate", "promote"} & {name for name, how in warm.statuses().items() if how == "ran"}
    assert warm.run("models", "history", "tiny", "--json").out == history
