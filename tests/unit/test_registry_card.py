"""A draft's card: what it must say, and that names from outside cannot change what it says."""

from deepspec.registry.card import model_card

SOURCES = [
    {"name": "chats", "domain": "talk", "licence": "CC-BY-4.0", "retention": "until 2027-06", "conversations": 90},
    {"name": "logs | <b>", "domain": None, "licence": None, "retention": "90 days", "conversations": 7, "rows": 8},
]
EVALUATION = {
    "benchmarks": {"gsm8k": {"tau": 4.256, "tau_ci95": [4.1, 4.4], "prompts": 20, "rounds": 300, "speedup": 2.5}},
    "macro": {"tau": 4.256, "speedup": None},
    "gate": {"tau": None, "tau_ci95": None, "prompts": {"a": [1, 2]}},
}


def card() -> str:
    return model_card(
        name="night",
        recipe="night",
        config={"algorithm": "dspark", "num_draft_tokens": 7, "target_layer_ids": [1, 9], "dtype": "bfloat16"},
        target="Qwen3_4B",
        digests={"draft": "d" * 64},
        sources=SOURCES,
        evaluation=EVALUATION,
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
    assert "| gate split | — | — | — | — | — |" in lines


def test_names_from_outside_are_text() -> None:
    assert "| logs \\| \\<b\\> | — | — | 90 days | 7 | 8 |" in card().splitlines()
