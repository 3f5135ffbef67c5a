"""The command line of each engine for each kind of draft that it loads, and what cannot be started."""

import json
import shlex
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from deepspec.drafts import ALGORITHMS
from deepspec.drafts.files.config_json import SavedAs
from deepspec.errors import BadArgument, IncompatibleDraft
from deepspec.export.matrix import ROWS, cell
from deepspec.serving import vllm_side
from deepspec.serving.launch import DRAIN_SECONDS, Launch, Server, launch
from deepspec.serving.prepare import ENGINES, Prepared, known_engine, prepared
from deepspec.serving.process import refuse_missing, refuse_taken
from tests.fixtures.algorithms import TARGETS
from tests.fixtures.published import trained
from tests.fixtures.refused import refused
from tests.unit.test_export import DEPTH
from tests.unit.test_export_engines import KINDS

VLLM = {
    "eagle3": ("eagle3", {}),
    "dflash, in_place": ("dflash", {}),
    "dflash, next_token": ("dspark", {"VLLM_USE_V2_MODEL_RUNNER": "1"}),
    "dspark, no head": ("dspark", {"VLLM_USE_V2_MODEL_RUNNER": "1"}),
    "dspark, vanilla head": ("dspark", {"VLLM_USE_V2_MODEL_RUNNER": "1"}),
}
"""Kind -> method, and variables; on both families where the table loads it."""

DSPARK = ["--speculative-algorithm", "DSPARK", "--speculative-dspark-block-size", "{k}"]
CALIBRATED = [*DSPARK, "--speculative-dspark-confidence-sts-path", "{dir}/calibration.json"]
SGLANG = {
    "dflash, in_place": ["--speculative-algorithm", "DFLASH", "--speculative-dflash-block-size", "{k+1}"],
    "dflash, next_token": DSPARK,
    "dspark, no head": CALIBRATED,
    "dspark, vanilla head": CALIBRATED,
    "dspark, gated head": CALIBRATED,
    "dspark, rnn head": CALIBRATED,
}


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("targets")
    return {name: make(folder / name, **DEPTH[name]) for name, make in TARGETS.items()}


def server(**changes: Any) -> Server:
    given: dict[str, Any] = {
        "python": "/env/python",
        "target": Path("/models/target"),
        "name": "target",
        "host": "127.0.0.1",
        "port": 8100,
    }
    return Server(**{**given, **changes})


def pairs(argv: tuple[str, ...]) -> set[tuple[str, str]]:
    return set(zip(argv[3::2], argv[4::2], strict=False))


@pytest.mark.parametrize("family", sorted(TARGETS))
@pytest.mark.parametrize("row", ROWS)
def test_every_cell_that_an_engine_loads_has_its_command(
    family: str, row: str, targets: dict[str, Path], tmp_path: Path
) -> None:
    """Over all kinds, families and engines: the whole command, or the table's refusal before anything is written."""
    algorithm, fields = KINDS[row]
    draft = trained(targets[family], algorithm, tmp_path / "draft", **fields)
    num_positions = ALGORITHMS[algorithm].num_draft_tokens(ALGORITHMS[algorithm].read_config(draft))
    beside = {"calibration.json": json.dumps({"temperatures": [1.5] * num_positions})}
    for engine in ENGINES:
        out, table = tmp_path / f".{engine}", cell(engine, family, row)
        if table.architecture is None:
            with refused(IncompatibleDraft, table.reason, where="config.json"):
                prepared(draft, engine, out, "target", beside)
            assert not out.exists()
            continue
        found = prepared(draft, engine, out, "target", beside)
        k = found.num_draft_tokens
        made = launch(found, server(further=("--max-model-len", "512")))
        if engine == "vllm":
            method, variables = VLLM[row]
            speculative = json.dumps(
                {
                    "method": method,
                    "model": str(out),
                    "num_speculative_tokens": k,
                    "draft_sample_method": "probabilistic",
                }
            )
            expected = [
                *("-m", "vllm.entrypoints.openai.api_server"),
                *("--model", "/models/target", "--served-model-name", "target"),
                *("--host", "127.0.0.1", "--port", "8100", "--speculative-config", speculative),
                *("--per-request-spec-decode-metrics", "detailed", "--shutdown-timeout", str(DRAIN_SECONDS)),
            ]
            assert made.environment == variables
        else:
            words = {"{k}": str(k), "{k+1}": str(k + 1), "{dir}/calibration.json": f"{out}/calibration.json"}
            algorithm_words = [words.get(word, word) for word in SGLANG[row]]
            expected = [
                *("-m", "sglang.launch_server", "--model-path", "/models/target", "--served-model-name", "target"),
                *("--host", "127.0.0.1", "--port", "8100", "--enable-metrics"),
                *(*algorithm_words[:2], "--speculative-draft-model-path", str(out), *algorithm_words[2:]),
            ]
            assert made.environment == {}
        assert list(made.argv) == ["/env/python", *expected, "--max-model-len", "512"]
        assert shlex.split(made.shell_line()) == [*(f"{n}={v}" for n, v in made.environment.items()), *made.argv]
        assert made.to_json()["directory"] == str(out)


def test_what_lies_there_is_used_again_unless_it_is_damaged(targets: dict[str, Path], tmp_path: Path) -> None:
    draft, out = trained(targets["qwen3"], "eagle3", tmp_path / "draft"), tmp_path / ".vllm"
    first = prepared(draft, "vllm", out, "target", {})
    written = (out / "config.json").stat().st_ino
    assert prepared(draft, "vllm", out, "target", {}) == first
    assert (out / "config.json").stat().st_ino == written
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "norm_output": True}))
    assert prepared(draft, "vllm", out, "target", {}) == first
    assert json.loads((out / "config.json").read_text()) == config


def made(engine: str = "vllm", **changes: Any) -> Launch:
    return launch(Prepared(engine, Path("/d"), "eagle3", 5), server(**changes))


def test_a_server_whose_draft_will_change_has_the_calls_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    found = made(live=True)
    side = Path(vllm_side.__file__).parent
    assert found.environment == {"VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": f"{side}:/mine"}
    position = found.argv.index("--weight-transfer-config")
    assert json.loads(found.argv[position + 1]) == {"backend": "deepspec"}
    module, _, name = found.argv[position + 3].partition(".")
    assert f"class {name}:" in (side / f"{module}.py").read_text()
    assert 'register_engine("deepspec", ' in (side / f"{module}.py").read_text()


def test_fields_that_only_training_reads_do_not_stand_in_the_way_of_an_update() -> None:
    """Two champions may be trained otherwise; the list is in a file that only vLLM's environment can import."""
    text = (Path(vllm_side.__file__).parent / "deepspec_vllm.py").read_text()
    trained_with = {
        mark.name
        for algorithm in ALGORITHMS.values()
        for mark in SavedAs.of(algorithm.Config).values()
        if mark.trained_with
    }
    assert trained_with
    assert all(f'    "{name}",\n' in text for name in trained_with)


def test_what_is_set_here_is_not_set_twice() -> None:
    for word in ("--port", "--port=1", "--speculative-config"):
        with refused(BadArgument, word.partition("=")[0], where="--"):
            made(further=(word, "1"))


@pytest.mark.parametrize(("host", "url"), [("::", "127.0.0.1"), ("::1", "[::1]"), ("a", "a")])
def test_a_server_is_asked_where_it_listens(host: str, url: str) -> None:
    assert made(host=host).url == f"http://{url}:8100"


def test_what_cannot_be_started_is_said_before() -> None:
    with refused(BadArgument, "'trt'", where="--engine"):
        known_engine("trt")
    with refused(BadArgument, "/no/python", where="--python"):
        refuse_missing("/no/python", "vllm")
    with refused(BadArgument, "sglang", where="--python"):
        refuse_missing(sys.executable, "sglang")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with refused(BadArgument, str(port), where="--port"):
            refuse_taken("127.0.0.1", port)
    refuse_taken("127.0.0.1", port)
