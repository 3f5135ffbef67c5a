"""The data section: defaults that were promised, and values that are refused."""

import pytest
from pydantic import ValidationError

from deepspec.data.config import SPLITS, Config, EndpointExecution, Responses, Splits
from deepspec.recipe import load_recipe
from deepspec.store.keys import canonical


def test_one_source_may_be_given_as_a_string() -> None:
    assert [entry.path for entry in Config.model_validate({"source": "rows.jsonl"}).source] == ["rows.jsonl"]
    several = Config.model_validate({"source": ["a.jsonl", {"path": "b/*.parquet", "weight": None}]})
    assert [entry.path for entry in several.source] == ["a.jsonl", "b/*.parquet"]
    assert several.model_dump(mode="json")["source"] == ["a.jsonl", "b/*.parquet"]


def test_a_source_says_what_it_is() -> None:
    given = {"path": "a.jsonl", "weight": 2.0, "domain": "code", "licence": "CC-BY-4.0", "retention": "until 2027"}
    config = Config.model_validate({"source": given})
    assert config.source[0].weight == 2
    assert config.model_dump(mode="json")["source"] == [given | {"name": None, "max_rows": None}]
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_defaults() -> None:
    config = Config.model_validate({"source": "rows.jsonl"})
    assert (config.max_length_tokens, config.min_supervised_tokens, config.max_quarantined_share) == (4096, 14, 0.01)
    assert config.mask == "serving"
    assert config.responses == Responses(mode="regenerate", temperature=0.7, top_p=0.8, top_k=20, max_new_tokens=4096)
    assert (config.splits.validation, config.splits.calibration, config.splits.gate) == (0.02, 0.02, 0.02)


def test_every_held_out_split_has_a_share() -> None:
    assert set(Splits.model_fields) == set(SPLITS) - {"train"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": ()}, "source"),
        ({"source": "  "}, "source is blank"),
        ({"source": {"path": " "}}, "source is blank"),
        ({"source": ["a", {"path": "b", "weight": 1}]}, "weight"),
        ({"source": [{"path": "a", "weight": 0}]}, "weight"),
        ({"source": [{"path": "a", "name": "x"}, {"path": "b", "name": "x"}]}, "'x'"),
        ({"source": [{"path": "a", "licence": "two\nlines"}]}, "control characters"),
        ({"source": "a", "near_duplicates": 0}, "near_duplicates"),
        ({"source": "a", "decontamination_words": 3}, "decontamination_words"),
        ({"source": "a", "max_quarantined_share": 1.5}, "max_quarantined_share"),
        ({"source": "a", "mask": "all"}, "mask"),
        ({"source": "a", "system_prompt": " "}, "system_prompt"),
        ({"source": "a", "max_length_tokens": 10}, "min_supervised_tokens"),
        ({"source": "a", "responses": {"max_new_tokens": 5}}, "responses.max_new_tokens .5. .*min_supervised_tokens"),
        ({"source": "a", "responses": {"temperature": -0.1}}, "temperature"),
        ({"source": "a", "responses": {"top_p": 0}}, "top_p"),
        ({"source": "a", "splits": {"validation": 0.5, "gate": 0.5}}, "splits .* 1.02"),
        ({"source": "a", "splits": {"test": 0.5}}, "test"),
        ({"source": "a", "shuffle": True}, "shuffle"),
    ],
)
def test_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(values)


def test_kept_answers_need_no_room_for_new_ones() -> None:
    assert Config.model_validate({"source": "a", "responses": {"mode": "keep", "max_new_tokens": 5}})


@pytest.mark.parametrize(("word", "meant"), [("off", "off"), ("on", "on"), ("keep", "keep"), ("'on'", "on")])
def test_thinking_is_a_word(word: str, meant: str) -> None:
    recipe = load_recipe("tiny", [f"data.thinking={word}"])
    assert recipe.data.thinking == meant
    assert canonical(recipe.data).get("thinking") == (None if meant == "off" else meant)


def test_endpoints_are_base_urls() -> None:
    assert EndpointExecution().endpoints == ()
    assert EndpointExecution(endpoints="http://a:8000/v1/").endpoints == ("http://a:8000",)
    assert EndpointExecution(endpoints=["https://a/x", "http://b"]).endpoints == ("https://a/x", "http://b")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a:8000", "endpoint 1 .*http"),
        (["http://a", "file:///x"], "endpoint 2 .*http"),
        ("http://me:canary@a", "DEEPSPEC_ENDPOINT_API_KEY"),
        ("http://a?key=canary", "DEEPSPEC_ENDPOINT_API_KEY"),
        (["http://a", "http://a/v1"], "twice"),
    ],
)
def test_endpoints_that_are_refused(value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        EndpointExecution.model_validate({"endpoints": value})
    assert "canary" not in caught.value.errors()[0]["msg"]  # what the command line repeats
