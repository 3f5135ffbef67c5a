"""Benchmarks played through real HTTP servers, one of which decodes with our engine and a draft."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from deepspec.data.chat.formats import CHATML
from deepspec.data.chat.renderer import Renderer
from deepspec.data.chat.tokenizer import load_tokenizer
from deepspec.data.responses.endpoint_protocol import Vocabulary
from deepspec.drafts import ALGORITHMS
from deepspec.errors import DataError, MeasurementError, RecipeError
from deepspec.evaluation.config import Config
from deepspec.evaluation.evaluate import evaluate
from deepspec.evaluation.server.asked import Pace, Server
from deepspec.evaluation.server.measure import measure
from deepspec.evaluation.server.results import ServedEvaluation
from deepspec.targets.directory import read_spec
from deepspec.targets.model import Target
from tests.fixtures.openai_server import answer_of, openai_server
from tests.fixtures.refused import refused
from tests.fixtures.targets import tiny_qwen3
from tests.fixtures.tokenizers import tiny_tokenizer

PACE = Pace(idle_seconds=0.15, limit_seconds=3.0)
NUM_DRAFT_TOKENS = 3
SAME = (
    "tau",
    "prefix_acceptance",
    "prefix_trials",
    "conditional_acceptance",
    "conditional_trials",
    "verify_rate",
    "mean_proposed",
    "rounds",
    "prompts",
    "tokens",
    "stopped",
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random target (with its tokenizer), and a draft that says what the target repeats."""
    folder = tmp_path_factory.mktemp("pair")
    target = tiny_tokenizer(folder / "tiny")
    tokenizer = load_tokenizer(target)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tiny_qwen3(target, vocab_size=len(tokenizer), num_layers=2, tie_word_embeddings=True, eos_token_id=end, seed=4)
    spec = read_spec(target)
    algorithm = ALGORITHMS["dspark"]
    config = algorithm.Config(
        num_draft_tokens=NUM_DRAFT_TOKENS,
        num_layers=1,
        target_layer_ids=(-1, 0),
        mask_token_id=3,
        markov_rank=8,
        num_anchors=4,
    )
    torch.manual_seed(0)
    draft = algorithm.build(config, spec)
    table_VD = load_file(target / "model.safetensors")["model.embed_tokens.weight"]
    algorithm.initialize(draft, table_VD, table_VD, 0)
    algorithm.save(draft, folder / "draft", config, spec)
    return folder


def write_benchmarks(folder: Path, *later: str) -> None:
    """Two benchmarks; every prompt has these later turns."""
    for name, count in (("math", 6), ("chat", 5)):
        rows = [{"turns": [f"{name} question {index}: how many apples?", *later]} for index in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Two benchmarks of the words that the fixture's tokenizer knows, and a gate split."""
    write_benchmarks(tmp_path)
    asked = [{"messages": [{"role": "user", "content": "gate"}]}]
    pq.write_table(pa.Table.from_pylist(asked), tmp_path / "gate.parquet")
    return tmp_path


def config_of(inputs: Path, **fields: Any) -> Config:
    benchmarks = {name: str(inputs / f"{name}.jsonl") for name in ("math", "chat")}
    given = {"sampling": {"temperature": 0}, "max_new_tokens": 21, **fields}
    return Config.model_validate({"benchmarks": benchmarks, **given})


def play(config: Config, url: str, tokenizer: Any, *, model: str = "tiny", **settings: Any) -> ServedEvaluation:
    server = {"concurrency": 3, "timeout_seconds": 30.0, "patience_seconds": 5.0, **settings.pop("server", {})}
    return measure(
        config,
        Server(url, model, **server),
        renderer=Renderer(tokenizer, CHATML),
        vocabulary=Vocabulary(tokenizer, len(tokenizer), CHATML.end_of_turn_ids(tokenizer)),
        pace=PACE,
        **{"context": 512, **settings},
    )


@pytest.fixture(scope="module")
def engine(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that decodes with the pair and counts like vLLM."""
    log = tmp_path_factory.mktemp("server") / "log"
    with openai_server(
        pair / "tiny", log, metrics="vllm", target=str(pair / "tiny"), draft=str(pair / "draft")
    ) as server:
        yield server.url


def test_served_acceptance_is_that_in_process(engine: str, pair: Path, inputs: Path) -> None:
    write_benchmarks(inputs, "and then?")
    config = config_of(inputs, thresholds=(), load={"concurrency": ()})
    tokenizer = load_tokenizer(pair / "tiny")
    served = play(config, engine, tokenizer)
    algorithm = ALGORITHMS["dspark"]
    draft = algorithm.load(pair / "draft", read_spec(pair / "tiny"), device="cpu", dtype="float32")
    drafter = algorithm.drafter(draft, algorithm.read_config(pair / "draft"))
    target = Target.load(pair / "tiny", device="cpu", dtype="float32", layer_ids=drafter.layer_ids)
    out = inputs / "out"
    out.mkdir()
    found = evaluate(
        config,
        target=target,
        drafter=drafter,
        renderer=Renderer(tokenizer, CHATML),
        conversations=inputs,
        out=out,
    )
    assert served.problems == ()
    for name, expected in found.benchmarks.items():
        part = served.benchmarks[name]
        assert {key: getattr(part, key) for key in SAME} == {key: getattr(expected, key) for key in SAME}
        assert part.notes == part.failed == part.skipped == ()
        assert part.not_measured is None
        assert expected.stopped == 0  # so that no engine counts what no answer has
        assert part.tau_from_tokens <= part.tau
        assert part.tokens_per_second == pytest.approx(part.tokens / part.seconds)
    assert served.macro.tau == found.macro.tau
    taus = [part.tau for part in served.benchmarks.values()]
    assert 1 < min(taus) < max(taus)  # the two benchmarks are told apart, and the draft is of use
    assert (served.engine, served.engine_version, served.concurrency) == ("vllm", "0.10.2", 3)
    assert served.endpoint == engine.removeprefix("http://")


@pytest.mark.full  # two measurements of an engine
def test_sampled_answers_have_the_same_seeds(engine: str, pair: Path, inputs: Path) -> None:
    config = config_of(inputs, sampling={"temperature": 1.0, "top_k": 5, "seed": 7}, num_warmup_prompts=0)
    tokenizer = load_tokenizer(pair / "tiny")
    one, other = (play(config, engine, tokenizer, server={"concurrency": width}) for width in (1, 4))
    for name in one.benchmarks:
        # A batch does not matter to our engine: same prompts and seeds, same rounds.
        first, second = one.benchmarks[name], other.benchmarks[name]
        assert {key: getattr(first, key) for key in SAME} == {key: getattr(second, key) for key in SAME}


def rule(tokenizer_dir: Path, inputs: Path, tokenizer: Any, config: Config, **settings: Any) -> ServedEvaluation:
    """Measure a server that answers by rule."""
    given = {"metrics": "vllm", **settings}
    played = given.pop("played", {})
    with openai_server(tokenizer_dir, inputs / "log", **given) as server:
        return play(config, server.url, tokenizer, **played)


def test_sglang_is_measured_by_its_rounds_and_tokens(tokenizer_dir: Path, inputs: Path, tokenizer: Any) -> None:
    config = config_of(inputs, max_new_tokens=64)
    vllm = rule(tokenizer_dir, inputs, tokenizer, config)
    sglang = rule(tokenizer_dir, inputs, tokenizer, config, metrics="sglang", version="0.5.21")
    assert (sglang.engine, sglang.engine_version) == ("sglang", "0.5.21")
    for name, part in sglang.benchmarks.items():
        expected = vllm.benchmarks[name]
        assert part.tau == part.tau_from_tokens == expected.tau == expected.tau_from_tokens > 1
        assert part.rounds == expected.rounds
        assert part.prefix_acceptance == ()
        assert part.mean_proposed is None


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ("", "no /metrics"),
        ("vllm_plain", "decodes without a draft"),
        ("sglang_averages", "averages only"),
    ],
)
def test_without_counters_there_is_a_reason_and_no_number(
    tokenizer_dir: Path, inputs: Path, tokenizer: Any, metrics: str, reason: str
) -> None:
    found = rule(tokenizer_dir, inputs, tokenizer, config_of(inputs), metrics=metrics)
    assert found.problems == ()  # it answers all the same
    assert found.macro.tau is None
    for part in found.benchmarks.values():
        assert part.tau is part.tau_from_tokens is part.rounds is None
        assert reason in part.not_measured
        assert part.tokens > 0
        assert part.tokens_per_second > 0


def test_a_restart_spoils_only_the_benchmark_it_falls_into(tokenizer_dir: Path, inputs: Path, tokenizer: Any) -> None:
    config = config_of(inputs, num_warmup_prompts=0)
    found = rule(tokenizer_dir, inputs, tokenizer, config, restarts_after=7)  # chat has five prompts and comes first
    chat, math = found.benchmarks["chat"], found.benchmarks["math"]
    assert chat.tau > 1
    assert math.tau is None
    assert "counters were reset" in math.not_measured
    assert math.tokens > 0
    [problem] = found.problems
    assert problem.startswith("benchmark math: ")
    assert "counters were reset" in problem
    assert found.macro.tau == chat.tau


def test_somebody_elses_answer_spoils_the_benchmark_it_falls_into(
    tokenizer_dir: Path, inputs: Path, tokenizer: Any
) -> None:
    config = config_of(inputs, num_warmup_prompts=0)
    found = rule(tokenizer_dir, inputs, tokenizer, config, visited_after=3)
    assert found.benchmarks["math"].tau > 1
    assert found.benchmarks["chat"].tau is None
    [problem] = found.problems
    assert "6 answers" in problem
    assert "5 of them" in problem


def test_a_server_that_others_use_is_not_measured_at_all(tokenizer_dir: Path, inputs: Path, tokenizer: Any) -> None:
    with refused(MeasurementError, "counters", "change"):
        rule(tokenizer_dir, inputs, tokenizer, config_of(inputs), is_busy=True)


@pytest.mark.parametrize(("how", "counted_by"), [("detailed", "round"), ("summary", "answer"), ("sglang", "answer")])
def test_replies_that_say_their_rounds_are_counted_while_others_use_the_server(
    tokenizer_dir: Path, inputs: Path, tokenizer: Any, how: str, counted_by: str
) -> None:
    """The number is that by the counters of a server that no one else uses."""
    config = config_of(inputs, max_new_tokens=64)
    alone = rule(tokenizer_dir, inputs, tokenizer, config)
    used = rule(tokenizer_dir, inputs, tokenizer, config, is_busy=True, says_rounds=how)
    assert used.problems == ()
    for name, part in used.benchmarks.items():
        expected = alone.benchmarks[name]
        assert (part.counted_by, expected.counted_by) == (counted_by, "server")
        assert part.stopped == part.tau_from_tokens_answers == part.prompts
        assert part.tau_from_tokens == expected.tau_from_tokens > 1
        assert (part.rounds, part.proposed, part.accepted) == (expected.rounds, expected.proposed, expected.accepted)
        low, high = part.tau_from_tokens_ci95
        assert low < part.tau_from_tokens < high
        assert expected.tau_from_tokens_ci95 is None
        assert part.prefix_acceptance[:2] == expected.prefix_acceptance[:2]
    assert used.macro.tau_from_tokens == alone.macro.tau_from_tokens
    low, high = used.macro.tau_from_tokens_ci95
    assert low < used.macro.tau_from_tokens < high


@pytest.mark.parametrize(("how", "note"), [("some", "3 of 6 replies do not say"), ("wrong", "what 6 of 6 replies say")])
def test_where_replies_do_not_do_the_servers_counters_do(
    tokenizer_dir: Path, inputs: Path, tokenizer: Any, how: str, note: str
) -> None:
    config = config_of(inputs, num_warmup_prompts=1, max_new_tokens=64)
    alone = rule(tokenizer_dir, inputs, tokenizer, config)
    found = rule(tokenizer_dir, inputs, tokenizer, config, says_rounds=how)
    assert found.problems == ()
    assert found.benchmarks["math"].notes[0].startswith(note)
    for name, part in found.benchmarks.items():
        assert part.counted_by == "server"
        assert part.tau_from_tokens == alone.benchmarks[name].tau_from_tokens
    config = config_of(inputs, benchmarks={"math": str(inputs / "math.jsonl")}, num_warmup_prompts=0)
    used = rule(tokenizer_dir, inputs, tokenizer, config, says_rounds=how, is_busy=True)
    [problem] = used.problems
    assert "counters" in problem
    assert used.benchmarks["math"].tau_from_tokens is None
    assert used.benchmarks["math"].notes[0].startswith(note)


def test_domains_have_means_over_their_benchmarks(tokenizer_dir: Path, inputs: Path, tokenizer: Any) -> None:
    paths = {name: str(inputs / f"{name}.jsonl") for name in ("math", "chat")}
    benchmarks = {
        "math": {"path": paths["math"], "domain": "code"},
        "chat": {"path": paths["chat"], "domain": "code"},
        "again": {"path": paths["chat"]},
    }
    config = config_of(inputs, benchmarks=benchmarks, max_new_tokens=64)
    found = rule(tokenizer_dir, inputs, tokenizer, config, says_rounds="detailed")
    [(name, domain)] = found.domains.items()
    assert (name, domain.benchmarks) == ("code", ("math", "chat"))
    taus = [found.benchmarks[name].tau_from_tokens for name in domain.benchmarks]
    assert domain.tau_from_tokens == sum(taus) / 2
    assert domain.tau_from_tokens_ci95 is not None
    assert [part.domain for part in found.benchmarks.values()] == [None, "code", "code"]


def test_what_fails_is_listed_and_loses_nothing_else(tokenizer_dir: Path, inputs: Path, tokenizer: Any) -> None:
    bad = {"bad_words": {"math question 2": "refused"}}
    found = rule(tokenizer_dir, inputs, tokenizer, config_of(inputs, max_skipped_share=0.5), **bad)
    math = found.benchmarks["math"]
    assert (math.prompts, math.requests, len(math.failed)) == (5, 6, 1)
    assert math.tau > 1
    assert "not to my liking" in math.failed[0].reason
    assert math.failed[0].place.endswith("math.jsonl:3")
    assert math.notes[0].startswith("1 attempts")
    assert found.problems == ()
    strict = rule(tokenizer_dir, inputs, tokenizer, config_of(inputs), **bad)
    [problem] = strict.problems
    assert problem.startswith("benchmark math: 1 of 6 prompts")
    assert strict.benchmarks["math"].tau == math.tau


def test_repeated_attempts_are_told_beside_the_numbers(tokenizer_dir: Path, inputs: Path, tokenizer: Any) -> None:
    calm = rule(tokenizer_dir, inputs, tokenizer, config_of(inputs))
    found = rule(tokenizer_dir, inputs, tokenizer, config_of(inputs), faults=0.5, kinds=("error",), seed=3)
    assert found.problems == ()
    assert any(part.notes for part in found.benchmarks.values())
    assert {name: part.tau for name, part in found.benchmarks.items()} == {
        name: part.tau for name, part in calm.benchmarks.items()
    }


def test_all_turns_are_asked_behind_the_servers_answers(tokenizer_dir: Path, inputs: Path, tokenizer: Any) -> None:
    write_benchmarks(inputs, "and then?")
    found = rule(tokenizer_dir, inputs, tokenizer, config_of(inputs), played={"server": {"concurrency": 2}})
    for part, count in ((found.benchmarks["math"], 6), (found.benchmarks["chat"], 5)):
        assert (part.prompts, part.requests) == (count, 2 * count)
        assert part.notes == ()
    entries = [json.loads(line)["body"] for line in (inputs / "log").read_text().splitlines()]
    texts = [tokenizer.decode(entry["prompt"]) for entry in entries]
    answers = {answer_of(entry["prompt"], entry["seed"]) for entry in entries}
    later = [text for text in texts if "and then?" in text]
    assert len(later) >= 11
    assert all(any(answer in text for answer in answers) for text in later)


def test_prompts_leave_room_within_the_context(tokenizer_dir: Path, inputs: Path, tokenizer: Any) -> None:
    config = config_of(inputs, max_new_tokens=400)
    rule(tokenizer_dir, inputs, tokenizer, config, max_model_len=100, played={"context": 100})
    entries = [json.loads(line)["body"] for line in (inputs / "log").read_text().splitlines()]
    assert {len(entry["prompt"]) + entry["max_tokens"] for entry in entries} == {100}
    with refused(DataError, "90 tokens", "evaluate.max_new_tokens"):
        rule(tokenizer_dir, inputs, tokenizer, config, max_model_len=90, played={"context": 100})


def test_another_model_a_wrong_key_and_no_benchmarks_are_the_users_errors(
    tokenizer_dir: Path, inputs: Path, tokenizer: Any
) -> None:
    config = config_of(inputs)
    with ExitStack() as stack:
        server = stack.enter_context(openai_server(tokenizer_dir, inputs / "log", metrics="vllm", key="sk-1"))
        with refused(DataError, "HTTP 401") as caught:
            play(config, server.url, tokenizer)
        assert "DEEPSPEC_ENDPOINT_API_KEY" in str(caught.value.remedy)
        with refused(DataError, "'tiny'", "'other'"):
            play(config, server.url, tokenizer, model="other", server={"api_key": "sk-1"})
        found = play(config, server.url, tokenizer, server={"api_key": "sk-1"})
        assert found.macro.tau > 1
        assert "sk-1" not in json.dumps(found.to_json())
    with refused(RecipeError, where="evaluate.benchmarks"):
        play(config_of(inputs, benchmarks={}), "http://127.0.0.1:9", tokenizer)
