"""The table of names: complete, and what it says about names holds."""

import pytest

from deepspec.evaluation.results import Evaluation
from deepspec.registry import keys
from deepspec.registry.keys import Entity, Sort
from tests.fixtures import results


def test_version_tags_are_all_in_the_table() -> None:
    tags = keys.version_tags(
        recipe="tiny",
        code_version="0.1.0",
        run_id="r",
        artifacts={stage: (f"key-{stage}", f"digest-{stage}") for stage in ("responses", "train", "evaluate")},
        evaluation=results.evaluation(gsm8k=5.25, empty=None, gate_tau=5.5),
    )
    assert keys.undocumented(Entity.VERSION, Sort.TAG, tags) == []
    assert keys.lineage_in(tags)["responses"] == ("key-responses", "digest-responses")
    found = {name: tags[f"deepspec.tau.{name}"] for name in ("gsm8k", "macro", "gate")}
    assert found == {"gsm8k": "5.2500", "macro": "5.2500", "gate": "5.5000"}
    assert len(tags) == 3 + 1 + 3


def test_without_an_evaluation_there_is_no_tau() -> None:
    tags = keys.version_tags(recipe="r", code_version="c", run_id="i", artifacts={}, evaluation=None)
    assert set(tags) == {keys.RECIPE, keys.CODE_VERSION, keys.RUN_ID}


def test_names_outside_the_table_are_found() -> None:
    names = ["deepspec.recipe", "deepspec.unit.loss", "mlflow.runName", "deepspec.unit.", "surprise"]
    assert keys.undocumented(Entity.CHILD, Sort.TAG, names) == ["deepspec.recipe", "deepspec.unit.", "surprise"]
    assert keys.undocumented(Entity.VERSION, Sort.TAG, ["deepspec.status"]) == ["deepspec.status"]


def test_every_entry_is_a_row_and_none_stands_twice() -> None:
    rows = keys.markdown_table().splitlines()
    assert len(rows) == 2 + len(keys.KEYS)
    assert len({(e.entity, e.sort, e.name) for e in keys.KEYS}) == len(keys.KEYS)
    assert all(row.count("|") == 5 for row in rows)
    assert "| registered version | tag | `deepspec.tau.<benchmark>` |" in keys.markdown_table()


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("accept_rate@3", "accept_rate_at_3"),
        ("arithmetic/tau", "arithmetic/tau"),
        ("mt-bench v2:chat", "mt-bench v2:chat"),
        ("what?!", "what__"),
        ("../escape", "_escape"),
        ("a//b", "a_b"),
        ("/absolute", "_absolute"),
        ("x" * 300, "x" * 250),
    ],
)
def test_names_that_mlflow_refuses_are_spelled_otherwise(name: str, accepted: str) -> None:
    assert keys.mlflow_name(name) == accepted


def test_an_interval_and_positions_are_named_apart() -> None:
    part = results.benchmark(4.0, tau_ci95=(3.5, 4.5), conditional_acceptance=(0.9, None, None), rounds=12)
    found = keys.evaluation_metrics(Evaluation(benchmarks={"chat": part}, gate=results.gate(3.0)))
    expected = {
        "gate/tau": 3.0,
        "chat/tau": 4.0,
        "chat/tau_ci95_low": 3.5,
        "chat/tau_ci95_high": 4.5,
        "chat/conditional_acceptance_at_1": 0.9,
        "chat/rounds": 12.0,
        "chat/draft_seconds": 1.5,
    }
    assert {name: value for name, value in found.items() if name in expected} == expected
    names = {name.partition("/")[2] for name in found}
    assert "conditional_acceptance_at_2" not in {name.partition("/")[2] for name in found if name.startswith("chat/")}
    assert not names & {"domain", "skipped", "failed", "per_prompt"}


def test_values_as_text() -> None:
    assert [keys.text_of(v) for v in ("x", 3, 3.0, None, [1, 2], {"b": 1, "a": "é"})] == [
        "x", "3", "3.0", "null", "[1, 2]", '{"a": "é", "b": 1}'
    ]  # fmt: skip


def test_the_lineage_is_one_tag_and_that_of_earlier_versions_is_read() -> None:
    made_from = {"train": ("k" * 64, "d" * 64), "evaluate": ("1" * 64, "2" * 64)}
    assert keys.lineage_in(keys.lineage_tag(made_from)) == made_from
    assert keys.lineage_tag({}) == {}
    earlier = {f"deepspec.key.{stage}": key for stage, (key, _) in made_from.items()}
    earlier |= {f"deepspec.digest.{stage}": digest for stage, (_, digest) in made_from.items()}
    assert keys.lineage_in({**earlier, "deepspec.recipe": "tiny"}) == made_from
    again = {"evaluate": ("3" * 64, "4" * 64)}
    assert keys.lineage_in({**earlier, **keys.lineage_tag(again)}) == made_from | again


@pytest.mark.parametrize(
    ("outcome", "version", "name"),
    [
        (None, None, "qwen3-4b · 2026-12-01"),
        ("promoted", "7", "qwen3-4b · 2026-12-01 · promoted v7"),
        ("no_change", None, "qwen3-4b · 2026-12-01 · no change"),
    ],
)
def test_a_runs_name_says_what_when_and_how_it_ended(outcome: str | None, version: str | None, name: str) -> None:
    assert keys.run_name("qwen3-4b", "20261201-020000-abcdef", outcome, version) == name
