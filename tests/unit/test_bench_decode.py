"""The benches that decode: their documents, and that the loop they compare with decodes the same."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from decoding_stubs import save_tiny_target, some_requests

from deepspec.bench import __main__ as bench
from deepspec.bench import pair as pairs
from deepspec.bench.simple_loop import SimpleLoop
from deepspec.decoding.config import Sampling
from deepspec.decoding.engine import Engine
from deepspec.drafts import ALGORITHMS
from deepspec.errors import RecipeError
from deepspec.targets.model import Target
from tests.fixtures.algorithms import small_config
from tests.fixtures.refused import refused


@pytest.fixture(scope="module", params=["dspark", "eagle3"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `target` and `draft`, at random weights."""
    folder = tmp_path_factory.mktemp("pair")
    target = Target.load(save_tiny_target(folder / "target"), layer_ids=(-1, 0))
    algorithm = ALGORITHMS[request.param]
    config = small_config(algorithm, target_layer_ids=(-1, 0))
    draft = algorithm.build(config, target.spec)
    algorithm.initialize(draft, target.embedding_weight, target.head_weight, 0)
    algorithm.save(draft, folder / "draft", config, target.spec)
    return folder


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    pairs.add_arguments(parser)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(arguments)


def test_the_simple_loop_decodes_what_the_engine_does(pair: Path) -> None:
    loaded = pairs.load(options("--pair", str(pair), "--temperature", "0"), needs_draft=True)
    assert loaded.drafter is not None
    loop = SimpleLoop(pair / "target", loaded.drafter, temperature=0.0, device="cpu", dtype=torch.float32)
    for request in some_requests(6, seed=3):
        output, rounds = loop.decode(request.prompt_ids, request.max_new_tokens)
        engine = Engine(loaded.target, loaded.drafter, sampling=Sampling(temperature=0.0), stop_ids=())
        [completion] = engine.run([request])
        assert tuple(output) == completion.output_ids
        assert rounds == len(completion.rounds)


@pytest.mark.full
def test_decode(pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--requests", "1", "--max-new-tokens", "8", "--repeat", "1", "--context", "5"]
    bench.main(["decode", "--pair", str(pair), "--batch", "6", *sizes, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert set(document["ratio"]) == {
        "batch1_to_simple_loop",
        "batch6_to_simple_loop",
        "speedup_over_plain_batch1",
        "speedup_over_plain_batch6",
    }
    assert list(document["step_milliseconds"]) == ["1", "4", "6"]
    for step in document["step_milliseconds"].values():
        assert set(step) == {"plain", "verify", "draft"}
    assert document["ours"]["tau"] >= 1
    bench.main(["decode", "--pair", str(pair), "--batch", "1", *sizes])
    assert "speedup over plain batch1" in capsys.readouterr().out


def test_sps(pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--rows", "2", "--repeat", "1", "--context", "5", "--json"]
    bench.main(["sps", "--pair", str(pair), *sizes])
    document = json.loads(capsys.readouterr().out)
    rates = list(document["table"].values())
    assert rates == sorted(rates, reverse=True)
    assert set(document["drafting_seconds"]) == {"1", "2"}
    bench.main(["sps", "--target", str(pair / "target"), *sizes])
    document = json.loads(capsys.readouterr().out)
    assert (list(document["table"]), document["drafting_seconds"]) == (["1", "2"], {})


def test_what_is_not_there_is_said(pair: Path, tmp_path: Path) -> None:
    with refused(RecipeError, str(tmp_path), where="--target"):
        pairs.load(options("--pair", str(tmp_path)), needs_draft=True)
    with refused(RecipeError, where="--draft"):
        pairs.load(options("--target", str(pair / "target")), needs_draft=True)
    with refused(RecipeError, "none.parquet", where="--prompts"):
        pairs.load(options("--pair", str(pair), "--prompts", str(tmp_path / "none.parquet")), needs_draft=True)
    with refused(RecipeError, "109", "96", where="--max-new-tokens"):
        bench.main(["decode", "--pair", str(pair), "--max-new-tokens", "104", "--context", "5"])
