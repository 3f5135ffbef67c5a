"""Recipes: what is shipped resolves as recorded, and what is wrong is named."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from deepspec.config import ExecutionSection
from deepspec.demo.config import Config as DemoConfig
from deepspec.demo.recipes import ALL
from deepspec.drafts import ALGORITHMS
from deepspec.errors import RecipeError
from deepspec.planning.estimate import spec_of
from deepspec.recipe import Recipe, load_recipe, read_yaml, shipped, to_yaml, validated
from deepspec.store import open_store
from deepspec.store.keys import canonical
from deepspec.yaml import dumps, loads
from tasks.resolve import live_states
from tasks.runtime.references import Pending, Value
from tasks.runtime.run import Run
from tasks.stages import STAGES
from tasks.train import train
from tests.fixtures.refused import refused

GOLDEN = Path(__file__).parents[1] / "golden" / "recipes"
KEYS = GOLDEN.parent / "keys"


@pytest.mark.parametrize("name", shipped())
def test_golden_text_of_every_shipped_recipe(
    name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Every default of every recipe: one that changes silently would give old artifacts new keys."""
    monkeypatch.setenv("DEEPSPEC_HOME", "/home-folder")
    text = to_yaml(load_recipe(name))
    path = GOLDEN / f"{name}.yaml"
    if request.config.getoption("--golden"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", ["tiny", "demo", "dspark-qwen3-4b"])
def test_golden_sections_in_every_stages_key(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """What keys contain of a recipe, by stage. A difference throws away what users have: all that was made with it.

    Stage versions are not among it: what bumps one says so where it does.
    """
    recipe = load_recipe(name)
    configs: list[BaseModel] = [recipe]
    if recipe.inputs is not None:
        configs.append(validated(DemoConfig, read_yaml(recipe.inputs), (), where=recipe.inputs))
    lines = [
        f"{stage.name} {json.dumps(stage.ingredients(run, {}).canonical()['sections'], sort_keys=True)}\n"
        for run in (Run(config, open_store(str(tmp_path / "store")), tmp_path) for config in configs)
        for stage in STAGES
        if stage.name.startswith("demo_") == isinstance(run.recipe, DemoConfig)
    ]
    path = KEYS / f"{name}.txt"
    if request.config.getoption("--golden"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines))
    assert lines == path.read_text().splitlines(keepends=True)


def test_recipes_are_also_known_by_the_public_checkpoints_names() -> None:
    for algorithm, ending in (("eagle3", "ttt7"), ("dflash", "block7"), ("dspark", "block7")):
        for target in ("qwen3_4b", "qwen3_8b", "qwen3_14b", "gemma4_12b"):
            recipe = load_recipe(f"{algorithm}_{target}_{ending}")
            assert recipe.name == f"{algorithm}-{target.replace('_', '-')}"
            assert recipe.draft.algorithm == algorithm
    with refused(RecipeError, "dspark_qwen3_5b_block7"):
        load_recipe("dspark_qwen3_5b_block7")


def test_the_demos_recipes_are_alike_but_for_what_an_algorithm_needs() -> None:
    recipes = [load_recipe(name) for name in ALL]
    assert [recipe.draft.algorithm for recipe in recipes] == list(ALGORITHMS)
    assert [recipe.name for recipe in recipes] == list(ALL)
    own: dict[str, Any] = {
        "name": True,
        "draft": True,
        "train": True,
        "gates": {"servable"},
    }  # a layout is an algorithm's
    shared = [recipe.model_dump(exclude=own) for recipe in recipes]
    assert shared == [shared[0]] * len(recipes)
    # Equal layers, hence captured once.
    assert len({recipe.draft.model_dump()["target_layer_ids"] for recipe in recipes}) == 1


# (tensors, parameters in millions) of the public checkpoints: spec page "Serving", section 4.
PUBLIC_SIZES = {"eagle3": (16, 927.3), "dflash": (60, 1315.3), "dspark": (64, 1393.1)}


@pytest.mark.parametrize("name", [name for name in shipped() if "-qwen3-" in name or "-gemma4-" in name])
def test_every_published_recipe_builds_without_memory(name: str) -> None:
    recipe = load_recipe(name)
    spec = spec_of(recipe)
    algorithm = ALGORITHMS[recipe.draft.algorithm]
    with torch.device("meta"):
        draft = algorithm.build(recipe.draft, spec)
    tensors = draft.state_dict()
    millions = sum(tensor.numel() for tensor in tensors.values()) / 1e6
    if name.endswith("qwen3-4b"):
        count, size = PUBLIC_SIZES[recipe.draft.algorithm]
        assert len(tensors) == count
        assert millions == pytest.approx(size, abs=0.05)
    tables = 2 * spec.vocab_size * spec.hidden_size / 1e6
    assert tables < millions < 3 * tables
    assert recipe.data.max_length_tokens == 4096
    assert algorithm.num_draft_tokens(recipe.draft) == 7


# Tensors and parameters of a draft for Gemma 4 12B: the tables (2 x 1,006,632,960) and the projection of five layers
# (73,728,000); each layer of a block draft is a full-attention one of the target (241,844,225).
GEMMA_SIZES = {"eagle3": (18, 2_362_269_185), "dflash": (70, 3_296_222_725), "dspark": (74, 3_430_444_550)}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gemmas_recipes_build_with_the_published_layers(algorithm: str) -> None:
    recipe = load_recipe(f"{algorithm}-gemma4-12b")
    spec = spec_of(recipe)
    assert ALGORITHMS[algorithm].layer_ids(recipe.draft, spec) == (5, 17, 29, 41, 46)
    with torch.device("meta"):
        draft = ALGORITHMS[algorithm].build(recipe.draft, spec)
    assert getattr(draft, "mask_token_id", 4) == 4
    tensors = draft.state_dict().values()
    assert (len(tensors), sum(tensor.numel() for tensor in tensors)) == GEMMA_SIZES[algorithm]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trian.lr=1", ["trian", "train"]),
        ("train.learning_rate=1", ["train.learning_rate"]),
        ("train.lr=-1", ["train.lr", "-1"]),
        ("train.lr=.nan", ["train.lr"]),
        ("train.num_epochs=1.5", ["train.num_epochs", "1.5"]),
        ("draft.algorithm=dsprak", ["draft", "dsprak"]),
        ("name=a/b", ["name", "a/b"]),
        ("data.source=", ["data.source"]),
        ("evaluate.sampling.temperature=-0.1", ["evaluate.sampling.temperature"]),
    ],
)
def test_wrong_field_is_named_with_its_value(override: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("demo", [override])
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("override", "value", "allowed", "example"),
    [
        ("train.lr=abc", "'abc'", "a number, greater than 0", "0.0006"),
        ("train.num_epochs=1.5", "1.5", "a whole number, at least 1", "10"),
        ("train.num_steps=many", "'many'", "a whole number, at least 1 or null", "…"),
        ("train.betas=[0.9]", "[0.9]", "a list of 2 (a number, at least 0 and less than 1 each)", "…"),
        ("train.compute_dtype=fp8", "'fp8'", "one of float32, bfloat16", "float32"),
        ("draft.num_draft_tokens=100", "100", "a whole number, at least 1 and at most 64", "7"),
        ("draft.confidence_head=7", "7", "true or false", "true"),
        ("draft.algorithm=dsprak", "'dsprak'", "one of dflash, dspark, eagle3", "…"),
        ("draft=3", "3", "a section", "…"),
        ("evaluate.benchmarks.chat.share=7", "7", "a number, greater than 0.0 and at most 1.0", "1.0"),
    ],
)
def test_wrong_value_is_told_with_what_is_allowed_and_what_to_do(
    override: str, value: str, allowed: str, example: str
) -> None:
    field = override.partition("=")[0]
    with refused(RecipeError, f"{field} ", f" {allowed}, ", f" {value}.", where="recipe demo") as caught:
        load_recipe("demo", [override])
    assert f"--set {field}={example}." in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("draft.markov_rnak=1", ["draft.markov_rnak", "markov_rank?"]),
        ("draft.slots=in_place", ["draft.slots", "algorithm, ce_weight, confidence_head"]),
        ("draft={num_layers: 1}", ["draft.algorithm is missing", "--set draft.algorithm=…"]),
        ("evaluate.benchmarks={a: {num_prompts: 1}}", ["evaluate.benchmarks.a.path is missing"]),
        ("evaluate.benchmarks={a: {path: x, sharee: 1}}", ["evaluate.benchmarks.a.sharee"]),
        ("train.lr=true", ["train.lr ", "number", "true"]),
        ("data.source=[{path: a, wieght: 2}]", ["data.source[0].wieght", "weight?"]),
        ("data.source=[a, {weight: 2}]", ["data.source[1].path is missing", "in the recipe."]),
        (
            "data.source=[{path: a, weight: -2}]",
            ["data.source[0].weight ", "a number, greater than 0", "-2"],
        ),
        ("data.source={path: a, weight: many}", ["data.source[0].weight ", "a number", "'many'"]),
        ("data.source=[a, 3]", ["data.source[1]"]),
    ],
)
def test_advice_is_about_the_section_that_is_meant(override: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("demo", [override])
    assert all(word in str(caught.value) for word in words), str(caught.value)


RENAMED = {
    "data.max_quarantined_share": "max_quarantined",
    "states.row_group_tokens": "block_tokens",
    "train.max_grad_norm": "grad_norm",
    "train.num_documents_per_step": "batch_documents",
    "evaluate.max_skipped_share": "max_skipped",
    "run.num_generation_rows": "generation_rows",
    "run.num_evaluation_rows": "evaluation_rows",
    "run.num_decoding_threads": "decoding_threads",
    "run.num_shard_workers": "shard_workers",
}
"""Field -> what it was called at first."""


def another(path: str) -> int:
    """Another value of a field than in the recipe that the tests take."""
    return 1 if path.endswith("_share") else 2


def under_old_names(recipe: Recipe) -> dict[str, Any]:
    """A resolved recipe as it was written before any field was renamed."""
    content = recipe.model_dump(mode="json")
    for path, old in RENAMED.items():
        section, _, name = path.partition(".")
        content[section][old] = content[section].pop(name)
    return content


def test_a_recipe_under_old_names_is_the_same_recipe(tmp_path: Path) -> None:
    recipe = load_recipe("tiny", [f"{path}={another(path)}" for path in RENAMED])
    (tmp_path / "old.yaml").write_text(dumps(under_old_names(recipe)))
    assert load_recipe(str(tmp_path / "old.yaml")) == recipe


@pytest.mark.parametrize("path", RENAMED)
def test_an_override_may_have_either_name(path: str, tmp_path: Path) -> None:
    section = path.partition(".")[0]
    (tmp_path / "old.yaml").write_text(dumps(under_old_names(load_recipe("tiny"))))
    wanted = load_recipe("tiny", [f"{path}={another(path)}"])
    assert wanted != load_recipe("tiny")
    for name in ("tiny", str(tmp_path / "old.yaml")):
        for field in (path, f"{section}.{RENAMED[path]}"):
            assert load_recipe(name, [f"{field}={another(path)}"]) == wanted


def test_the_last_override_of_a_renamed_field_counts() -> None:
    given = ["train.grad_norm=2", "train.max_grad_norm=3"]
    assert load_recipe("tiny", given).train.max_grad_norm == 3
    assert load_recipe("tiny", given[::-1]).train.max_grad_norm == 2


@pytest.mark.parametrize("path", RENAMED)
def test_a_field_under_both_names_is_refused(path: str, tmp_path: Path) -> None:
    section, _, name = path.partition(".")
    content = load_recipe("tiny").model_dump(mode="json")
    content[section] |= {name: 1, RENAMED[path]: 1}
    (tmp_path / "both.yaml").write_text(dumps(content))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(tmp_path / "both.yaml"))
    assert all(word in str(caught.value) for word in (f"{section}:", name, RENAMED[path]))


def test_what_is_wrong_under_an_old_name_is_told_under_the_new_one() -> None:
    with refused(RecipeError, "train.max_grad_norm ", "-1", where="recipe demo"):
        load_recipe("demo", ["train.grad_norm=-1"])


@pytest.mark.parametrize("lr", ["3e-4", "+3E-4", ".3e-3", "3.e-4"])
def test_scientific_notation_is_a_number(lr: str, tmp_path: Path) -> None:
    assert load_recipe("demo", [f"train.lr={lr}"]).train.lr == 3e-4
    (tmp_path / "mine.yaml").write_text(to_yaml(load_recipe("demo")).replace("\n  lr: 0.004\n", f"\n  lr: {lr}\n"))
    assert load_recipe(str(tmp_path / "mine.yaml")).train.lr == 3e-4


@pytest.mark.parametrize(
    ("text", "line", "named"),
    [
        ("name: a\ndata:\n  seed: 1\n  seed: 2\n", 4, "seed"),
        ("name: a\ntrain:\n\tlr: 1\n", 3, "\\t"),
        ("data: [b,\nname: a\n", 3, "line 1"),
        ("name: a: b\n", 1, "mapping"),
        ("name: !!python/name:os.system\n", 1, "python/name"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(text: str, line: int, named: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with refused(RecipeError, named, where=f"mine.yaml:{line}"):
        load_recipe(str(tmp_path / "mine.yaml"))
    with refused(RecipeError, where="--set train.lr"):
        load_recipe("demo", [f"train.lr={text}"])


def test_words_and_dates_are_text() -> None:
    source = "data.source={path: on, name: no, domain: 12:30, licence: 'null', retention: 2027-01-31}"
    entry = load_recipe("demo", [source, "data.thinking=on"]).data.source[0]
    assert (entry.path, entry.name, entry.domain, entry.licence) == ("on", "no", "12:30", "null")
    assert entry.retention == "2027-01-31"


@pytest.mark.parametrize(
    "text", ["on", "y", "1e5", "0o7", "12:30", "2027-01-31", "null", "~", "é: b", "a\nb", " a", ""]
)
def test_written_text_is_read_as_it_was(text: str) -> None:
    assert loads(dumps({"a": [text, {text: 1e-8}]})) == {"a": [text, {text: 1e-8}]}
    assert dumps(text)[:1] in "'\""  # quoted for readers of YAML 1.1, too


def test_execution_sections_cannot_be_part_of_a_key() -> None:
    recipe = load_recipe("demo")
    assert isinstance(recipe.run, ExecutionSection)
    assert isinstance(recipe.store, ExecutionSection)


def test_micro_batches_are_part_of_a_drafts_key_where_they_are_not_the_usual_ones(tmp_path: Path) -> None:
    def sections(*overrides: str) -> set[str]:
        run = Run(load_recipe("tiny", overrides), open_store(str(tmp_path / "store")), tmp_path)
        return set(train.ingredients(run, {}).canonical()["sections"])

    usual = {"draft", "train", "target.dtype"}
    assert sections() == sections("run.num_threads=2") == usual
    assert sections("run.micro_batch_tokens=16383") == {*usual, "run.micro_batch_tokens"}


def test_sizes_of_files_decide_the_order_of_live_states_under_their_first_names(tmp_path: Path) -> None:
    recipe = load_recipe("tiny", ["states.mode=online", "states.row_group_tokens=48"])
    live = live_states(Run(recipe, open_store(str(tmp_path / "store")), tmp_path), Pending("tokens"))
    assert live == Value({"shard_tokens": 65536, "block_tokens": 48})


def test_locations_are_not_part_of_keys() -> None:
    here = load_recipe("demo", ["target.path=/a", "data.source=/b"])
    there = load_recipe("demo", ["target.path=/c", "data.source=/d"])
    assert canonical(here.target) == canonical(there.target)
    assert canonical(here.data) == canonical(there.data)


def test_recipe_needs_no_torch() -> None:
    import subprocess
    import sys

    heavy = "[m for m in ('torch', 'mlflow', 'prefect') if m in sys.modules]"
    code = f"import sys, deepspec.recipe, flows.retrain; print({heavy})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_every_field_read_by_a_stage_exists() -> None:
    """`@stage(reads=…)` names fields by dotted path: a typing error there would make a key blind."""
    from tests.stage_lock import stages

    recipe = load_recipe("demo")
    for name, stage in stages().items():
        if name.startswith("demo_"):
            continue
        for path in stage.reads:
            value: object = recipe
            for part in path.split("."):
                assert hasattr(value, part), f"{name} reads {path}"
                value = getattr(value, part)


def test_all_sections_are_frozen() -> None:
    recipe = load_recipe("demo")
    assert isinstance(recipe, Recipe)
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.lr = 1.0  # type: ignore[misc]


def test_variables_are_expanded_in_locations_and_in_no_other_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """A foreign recipe could else publish what a variable holds: licences, names and prompts leave the machine."""
    monkeypatch.setenv("PLANTED", "planted-value")
    given = "$PLANTED and ${PLANTED}"
    entry = f"{{path: $PLANTED/a.jsonl, name: {given!r}, licence: {given!r}, domain: {given!r}, retention: {given!r}}}"
    recipe = load_recipe(
        "dspark-qwen3-4b",
        [
            f"data.source=[{entry}]",
            f"data.system_prompt={given}",
            f"data.responses.served_model={given}",
            "run.currency=$PLANTED",
            "run.gpu=${PLANTED}",
            "run.endpoints=[http://host/$PLANTED]",
            "target.path=~/$PLANTED/target",
            "states.captured=${PLANTED}/states",
            "store.url=$PLANTED/store",
            "evaluate.benchmarks={own: $PLANTED/b.jsonl, other: {path: $PLANTED/c.jsonl}}",
        ],
    )
    locations = {
        recipe.data.source[0].path: "planted-value/a.jsonl",
        recipe.target.path: str(Path("~/planted-value/target").expanduser()),
        recipe.states.captured: "planted-value/states",
        recipe.store.url: "planted-value/store",
        recipe.evaluate.benchmarks["own"].path: "planted-value/b.jsonl",
        recipe.evaluate.benchmarks["other"].path: "planted-value/c.jsonl",
    }
    assert list(locations) == list(locations.values())
    assert to_yaml(recipe).count("planted-value") == len(locations)
    with refused(RecipeError, "train.lr", "$PLANTED", where="tiny"):
        load_recipe("tiny", ["train.lr=$PLANTED"])


def bomb(first: str, each: str) -> str:
    """Nine levels of aliases, `each` of them a format of a name and of nine times the name before."""
    levels = [each.format(name, ", ".join([f"*{before}"] * 9)) for before, name in pairwise("abcdefghi")]
    return "\n".join((first, *levels))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (bomb("a: &a [1, 1, 1]", "{0}: &{0} [{1}]"), "aliases make"),
        (bomb("a: &a {k: 1, l: 1}", "{0}: &{0} {{<<: [{1}]}}"), "aliases make"),
        ("a: &a [1, *a]", "part of"),
        ("a: &a {k: {l: *a}}", "part of"),
        ("a: " + "[" * 20_000, "nested too deeply"),
        ("a: " + "{b: " * 5_000 + "1" + "}" * 5_000, "nested too deeply"),
        ("a: '" + "x" * (1 << 20) + "'", "characters"),
    ],
    ids=["lists", "merged", "itself", "itself below", "deep lists", "deep mappings", "long"],
)
def test_yaml_that_would_take_all_memory_or_time_is_one_sentence(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with refused(RecipeError, named, where=str(path)):
        load_recipe(str(path))


def test_yaml_with_aliases_that_stay_small() -> None:
    assert loads("a: &a {x: [1, 2]}\nb: *a\nc: {<<: *a, y: 3}") == {
        "a": {"x": [1, 2]},
        "b": {"x": [1, 2]},
        "c": {"x": [1, 2], "y": 3},
    }
