"""`served_check` through real HTTP: a server that decodes with our engine, and says its rounds as vLLM does."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from deepspec.data.chat.tokenizer import load_tokenizer
from deepspec.data.responses.endpoint_protocol import Vocabulary
from deepspec.errors import BadArgument, DataError, TransientError
from deepspec.evaluation.kept_answers import KeptAnswer
from deepspec.evaluation.rounds import ANSWERS_SCHEMA, ROUNDS_SCHEMA
from deepspec.evaluation.server import gaps
from deepspec.evaluation.server.asked import Pace, Server
from deepspec.evaluation.server.check_results import ServedCheck
from deepspec.evaluation.server.expected import Pair, decoded, variants
from deepspec.gates.evidence import Served
from deepspec.serving.served_check import Wanted, evaluation_for, served_check
from deepspec.serving.staging import staged
from deepspec.store import Artifact, Store, open_store
from tests.fixtures.openai_server import openai_server
from tests.fixtures.published import trained
from tests.fixtures.refused import refused
from tests.fixtures.store import ingredients, put
from tests.fixtures.targets import tiny_qwen3
from tests.fixtures.tokenizers import tiny_tokenizer

PACE = Pace(idle_seconds=0.15, limit_seconds=3.0)
MAX_NEW_TOKENS = 24
PROMPTS = tuple(tuple(range(5 + number, 17 + 2 * number)) for number in range(12))


class Place:
    """A target, a draft, and an evaluation of it in a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.target = tiny_tokenizer(folder / "tiny")
        tokenizer = load_tokenizer(self.target)
        tiny_qwen3(self.target, vocab_size=len(tokenizer), num_layers=4, tie_word_embeddings=True, seed=3)
        self.draft = trained(self.target, "dflash", folder / "draft", target_layer_ids=(0, 1))
        asked = [KeptAnswer("math", str(at), 0, ids, (), "length", ()) for at, ids in enumerate(PROMPTS)]
        # A random target says a token again and again, then another: there its answers end here.
        said = [answer.output_ids for answer in decoded(asked, Pair(self.target, self.draft), MAX_NEW_TOKENS)]
        others = [[token for token in ids if token != ids[0]] for ids in said]
        self.ends = tuple({other[0] for other in others if other} - {ids[0] for ids in said})
        self.vocabulary = Vocabulary(tokenizer, len(tokenizer), self.ends)
        self.pair = Pair(self.target, self.draft, stop_ids=self.ends)
        self.answers = decoded(asked, self.pair, MAX_NEW_TOKENS)
        self.store = open_store(str(folder / "store"))
        files = {f"draft/{file.name}": file.read_bytes() for file in self.draft.iterdir()}
        self.train = put(self.store, ingredients("train"), files)
        self.evaluation = self.evaluated(self.store, temperature=0.0)

    def evaluated(self, store: Store, temperature: float) -> Artifact:
        """An evaluation that kept these answers."""
        said, rounds = [], []
        for answer in self.answers:
            place = {"benchmark": answer.benchmark, "prompt": answer.prompt, "turn": answer.turn}
            said.append({**place, "prompt_ids": answer.prompt_ids, "output_ids": answer.output_ids})
            said[-1]["finish_reason"] = answer.finish_reason
            names = ("proposed", "accepted", "committed")
            rounds += [{**place, **dict(zip(names, counts, strict=True))} for counts in answer.rounds]
        files = {}
        for name, rows, schema in (("answers", said, ANSWERS_SCHEMA), ("rounds", rounds, ROUNDS_SCHEMA)):
            file = self.folder / f"{name}.parquet"
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)
            files[file.name] = file.read_bytes()
        sampling = {"temperature": temperature, "top_p": 1.0, "top_k": 0, "seed": 0}
        sections = {"evaluate": {"sampling": sampling, "max_new_tokens": MAX_NEW_TOKENS}, "target.dtype": "float32"}
        made = ingredients("evaluate", {"draft": self.train.digest}, **sections)
        return put(store, made, files)

    @contextmanager
    def server(self, **settings: Any) -> Iterator[str]:
        given = {"target": str(self.target), "draft": str(self.draft), "says_rounds": "detailed", "metrics": "vllm"}
        with openai_server(self.target, self.folder / "log", **{**given, **settings}) as server:
            yield server.url

    def check(self, url: str, **given: Any) -> ServedCheck:
        wanted = Wanted("models:/mine@champion", self.train.digest, self.draft, self.target, self.evaluation)
        concurrency = given.pop("concurrency", 3)
        server = Server(url, "tiny", concurrency=concurrency, timeout_seconds=30.0, patience_seconds=2.0)
        return served_check(given.pop("wanted", wanted), server, self.vocabulary, pace=PACE, **given)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place(tmp_path_factory.mktemp("served"))
    reasons = [answer.finish_reason for answer in made.answers]
    assert set(reasons) == {"stop", "length"}
    return made


def test_the_right_draft_passes_while_others_use_the_server(place: Place) -> None:
    with place.server(is_busy=True) as url:
        found = place.check(url)
    assert found.sentence.startswith("Served as measured")
    assert (found.passed, found.rule, found.counted_by, found.equal) == (True, "equal", "round", len(PROMPTS))
    assert found.served == found.expected
    assert found.served.rounds > 0


def test_by_counters_it_passes_as_well(place: Place) -> None:
    with place.server(says_rounds="") as url:
        found = place.check(url)
    assert (found.passed, found.counted_by, found.served) == (True, "server", found.expected)
    with place.server(says_rounds="", is_busy=True) as url:
        used = place.check(url)
    assert not used.passed
    assert "other clients use the server" in used.sentence
    assert "detailed" in used.causes[0]


def test_without_a_draft_it_fails(place: Place) -> None:
    with place.server(draft="", says_rounds="", metrics="vllm_plain") as url:
        found = place.check(url)
    assert not found.passed
    assert "without a draft" in found.causes[0]


def test_a_draft_that_is_read_wrongly_is_found_out_by_decoding_so(place: Place, tmp_path: Path) -> None:
    """The server takes the draft's blocks for such of the other layout."""
    (variant,) = [one for one in variants(place.pair) if "slots" in one.cause]
    shutil.copytree(place.draft, tmp_path / "draft")
    config = json.loads((place.draft / "config.json").read_text())
    (tmp_path / "draft" / "config.json").write_text(json.dumps({**config, **variant.changes}))
    with place.server(draft=str(tmp_path / "draft")) as url:
        found = place.check(url)
    assert not found.passed
    assert found.equal == len(PROMPTS)  # the target's answers, whatever the draft
    assert found.other_rounds
    assert found.causes == (variant.cause,)


def test_another_target_is_found_out_by_its_answers(place: Place, tmp_path: Path) -> None:
    other = tiny_tokenizer(tmp_path / "tiny")
    tiny_qwen3(other, vocab_size=place.vocabulary.size, num_layers=4, tie_word_embeddings=True, seed=5)
    with place.server(target=str(other)) as url:
        found = place.check(url)
    assert not found.passed
    assert found.parted
    assert all(one.gap is None for one in found.parted)  # this server says no logits
    assert "another target" in found.causes[0]
    with place.server() as url, refused(DataError, "'tiny'", "'qwen'"):
        served_check(
            Wanted("x", None, place.draft, place.target, place.evaluation),
            Server(url, "qwen", timeout_seconds=30.0, patience_seconds=2.0),
            place.vocabulary,
        )


def test_a_draft_without_an_evaluation_is_asked_another_ones_prompts(place: Place, tmp_path: Path) -> None:
    other = trained(place.target, "dflash", tmp_path / "other", target_layer_ids=(0, 1))
    tensors = load_file(other / "model.safetensors")
    tensors["norm.weight"] = -tensors["norm.weight"]
    save_file(tensors, other / "model.safetensors")
    wanted = Wanted(str(other), None, other, place.target, evaluation_for(None, place.store))
    with place.server(draft=str(other)) as url:
        found = place.check(url, wanted=wanted)
        assert found.passed
        assert not place.check(url).passed
        with refused(BadArgument, "sampled", where=str(other)):
            place.check(url, wanted=wanted, sampled=True)


def test_a_sampled_evaluation_is_decoded_here_or_compared_as_it_was_drawn(place: Place, tmp_path: Path) -> None:
    drawn = place.evaluated(open_store(str(tmp_path / "store")), temperature=1.0)
    wanted = Wanted("x", place.train.digest, place.draft, place.target, drawn)
    with place.server() as url:
        found = place.check(url, wanted=wanted)
        assert (found.passed, found.rule, found.sampled) == (True, "equal", False)
        means = place.check(url, wanted=wanted, sampled=True)
        assert (means.rule, means.sampled, means.equal) == ("bounds", True, 0)


def test_a_server_that_is_gone_is_one_error(place: Place) -> None:
    with place.server(is_gone=True) as url, refused(TransientError):
        place.check(url)
    with refused(TransientError):
        place.check(url)


def test_a_server_that_dies_in_the_middle_is_one_error(place: Place, tmp_path: Path) -> None:
    settings = {"target": str(place.target), "draft": str(place.draft), "says_rounds": "detailed"}
    with openai_server(place.target, tmp_path / "log", **settings) as server:

        class Killing:
            """Kills it with the first answer."""

            def start(self, total: int, unit: str) -> None:
                assert (total, unit) == (len(PROMPTS), "prompts")

            def advance(self, amount: int = 1) -> None:
                assert amount
                server.process.kill()

        with refused(TransientError, where=server.url):
            place.check(server.url, progress=Killing(), concurrency=1)
    assert server.answered()


def test_a_staging_server_is_asked_as_it_is_where_its_draft_cannot_be_changed(place: Place, tmp_path: Path) -> None:
    wanted = Wanted("train/1", place.train.digest, place.draft, place.target, place.evaluation)

    def found(url: str) -> Served:
        server = Server(url, "tiny", concurrency=3, timeout_seconds=30.0, patience_seconds=2.0)
        return staged(wanted, server, place.vocabulary, tmp_path / "out", pace=PACE)

    with place.server() as url:
        well = found(url)
        assert well.passed
        assert (well.rounds, "as measured" in well.sentence) == (well.expected, True)
    with place.server(draft="", says_rounds="", metrics="vllm_plain") as url:
        badly = found(url)
    for words in (url, "without a draft", "--live"):
        assert words in badly.sentence
    away = found(url)
    assert (badly.passed, away.passed, away.rounds) == (False, False, None)
    assert f"The server at {url} was not asked to the end: " in away.sentence
    with place.server(model="another") as url:
        other = found(url)
    assert (other.passed, "another" in other.sentence) == (False, True)


def test_an_empty_store_has_no_prompts(tmp_path: Path) -> None:
    with refused(BadArgument, "no evaluation"):
        evaluation_for(None, open_store(str(tmp_path)))


@pytest.mark.parametrize(
    ("said", "gap"),
    [
        ({"token_id:681": -0.48, "token_id:583": -1.04}, 0.56),  # as vLLM 0.32.0 said it
        ({"token_id:681": -0.48, "token_id:9": -3.48}, 3.0),  # ours is not among them
        ({"token_id:583": -0.48}, None),
        ({"token_id:681": "x", "token_id:583": -1.0}, None),
        ({"token_id:681": float("nan"), "token_id:583": -1.0}, None),
        ("nothing", None),
        (None, None),
    ],
)
def test_gaps_are_read_from_what_a_server_says_of_its_likeliest_tokens(said: Any, gap: float | None) -> None:
    reply = httpx.Response(200, content=json.dumps({"choices": [{"logprobs": {"top_logprobs": [said]}}]}).encode())
    found = gaps._gap(reply, 583, 681)
    assert found == (None if gap is None else pytest.approx(gap))
    assert gaps.gap("http://127.0.0.1:9", "tiny", [1], 1, 2, None) is None
