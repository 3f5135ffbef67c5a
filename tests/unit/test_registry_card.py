"""A draft's card: what it must say, and that names from outside cannot change what it says."""

from typing import Any

from deepspec.drafts.files.public_files import Origin
from deepspec.evaluation.results import Evaluation, MeanResult
from deepspec.registry.card import CardBundle, CardDraft, CardSource, model_card
from tests.fixtures import results

SOURCES = [
    CardSource(name="chats", domain="talk", licence="CC-BY-4.0", retention="until 2027-06", conversations=90),
    CardSource(name="logs | <b>", retention="90 days", conversations=7, rows=8),
]
EVALUATION = Evaluation(
    benchmarks={"gsm8k": results.benchmark(4.256, tau_ci95=(4.1, 4.4), prompts=20, rounds=300, speedup=2.5)},
    macro=MeanResult(tau=4.256, speedup=None),
    gate=results.gate(None, rounds=0, prompts=1),
)


def card(**more: Any) -> str:
    return model_card(
        name="night",
        recipe="night",
        draft=CardDraft(
            algorithm="dspark",
            num_draft_tokens=7,
            num_hidden_layers=None,
            target_layer_ids=(1, 9),
            dtype="bfloat16",
        ),
        target="Qwen3_4B",
        digests={"draft": "d" * 64},
        sources=SOURCES,
        evaluation=EVALUATION,
        **more,
    )


def test_it_says_target_algorithm_sources_and_results() -> None:
    lines = card().splitlines()
    assert lines[0] == "# night"
    assert "| target | Qwen3\\_4B |" in lines
    assert "| algorithm | dspark |" in lines
    assert "| tokens proposed a round | 7 |" in lines
    assert "| target layers read | 1, 9 |" in lines
    assert f"| digest of draft | {'d' * 64} |" in lines
    assert "| chats | talk | CC-BY-4.0 | until 2027-06 | 90 | — |" in lines
    assert "| gsm8k | 4.26 | 4.10 … 4.40 | 20 | 300 | 2.50 |" in lines
    assert "| macro average | 4.26 | — | — | — | — |" in lines
    assert "| gate split | — | — | 1 | 0 | — |" in lines


def test_names_from_outside_are_text() -> None:
    assert "| logs \\| \\<b\\> | — | — | 90 days | 7 | 8 |" in card().splitlines()


def test_an_imported_draft_says_where_it_came_from_and_that_its_data_are_not_known() -> None:
    lines = card(origin=Origin(path="/drafts/a_b", files={}, name="some/target", licence="mit")).splitlines()
    assert "| imported from | /drafts/a\\_b |" in lines
    assert "| name in its config.json | some/target |" in lines
    assert "| licence in its README.md | mit |" in lines
    assert any(line.startswith("Not known: the draft was imported.") for line in lines)
    assert not any("chats" in line for line in lines)
    assert "target in its config.json" not in "".join(lines)
    started = card(started_outside=True)
    assert "| chats |" in started
    assert "Training started from a draft that was not trained here" in started
    assert "started from" not in card()


def bundled(**more: Any) -> CardBundle:
    given: dict[str, Any] = {
        "format": "vllm",
        "kind": "dspark, vanilla head",
        "checked": "source",
        "base_model": None,
        "revision": None,
        "licence": None,
        "lineage": [("train", "k" * 64, "d" * 64)],
        "figures": [],
        "files": {},
        "left_out": {"serving/x.json": "<b>nothing</b> was measured"},
        "code": {},
    }
    return CardBundle(**given | more)


def test_a_bundles_front_matter_holds_what_a_hub_accepts() -> None:
    from huggingface_hub import ModelCard

    def fields(**more: Any) -> dict[str, Any]:
        return dict(ModelCard(card(bundle=bundled(**more))).data.to_dict())

    assert fields()["license"] == "unknown"
    assert "base_model" not in fields(base_model="/models/target")
    assert fields(base_model="Qwen/Qwen3-4B", licence="apache-2.0") | {"tags": []} == {
        "license": "apache-2.0",
        "base_model": "Qwen/Qwen3-4B",
        "library_name": "vllm",
        "tags": [],
    }
    odd = fields(licence="Ours: no\n---\n# <b>")
    assert (odd["license"], odd["license_name"]) == ("other", "Ours: no\n---\n# <b>")


def test_a_bundles_card_says_what_is_missing_and_how_it_was_checked() -> None:
    text = card(bundle=bundled())
    assert "not there: \\<b\\>nothing\\</b\\> was measured." in text
    assert "was checked by source" in text
    assert "was checked by running the engine" in card(bundle=bundled(checked="engine run"))
    assert "it was not served" in card(bundle=bundled(checked=None))
    assert "The licence of the target is not known" in text
