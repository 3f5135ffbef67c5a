"""The benches' documents, from both commands. Times and ratios are measured, never asserted."""

import json
import mmap
import os
import subprocess
import sys

import pytest

from deepspec.bench import __main__ as bench
from deepspec.bench import states
from deepspec.errors import DeepspecError
from tests.fixtures.command import call
from tests.fixtures.refused import refused

SIZES = ["--vocab", "700", "--hidden", "16", "--anchors", "5", "--slots", "3", "--rank", "4", "--repeat", "1"]


@pytest.fixture
def measured(capsys):
    """The document that a bench prints."""

    def measured(name, *arguments):
        bench.main([name, *arguments, "--json"])
        return json.loads(capsys.readouterr().out)

    return measured


@pytest.fixture
def refusal(capsys):
    """What is said of wrong arguments; the exit code is 2."""

    def refusal(name, *arguments):
        with pytest.raises((DeepspecError, SystemExit)) as found:
            bench.main([name, *arguments])
        if isinstance(found.value, DeepspecError):
            assert found.value.exit_code == 2
            return str(found.value)
        assert found.value.code == 2
        return capsys.readouterr().err

    return refusal


@pytest.mark.full
def test_both_commands_are_the_same_bench():
    command = [sys.executable, "-m", "deepspec.bench", "loss", *SIZES, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    other = call(["bench", "loss", *SIZES, "--json"], os.environ)
    assert other.returncode == 0, other.stderr
    assert json.loads(done.stdout)["sizes"] == json.loads(other.stdout)["sizes"]
    wrong = call(["bench", "loss", "--device", "nowhere"], os.environ)
    assert wrong.returncode == 2
    (error,) = (line for line in wrong.stderr.splitlines() if not line.startswith(" "))  # those of the heartbeat
    assert error.startswith("deepspec: --device: ")


@pytest.mark.parametrize(("algorithm", "rank"), [("dspark", 4), ("eagle3", 0), ("dflash", 0)])
def test_loss(measured, algorithm, rank):
    document = measured("loss", *SIZES, "--algorithm", algorithm, "--threads", "1", "--device", "cpu")
    assert document["bench"] == "loss"
    assert document["device"] == "cpu"
    assert document["sizes"] == {
        "vocab": 700,
        "hidden": 16,
        "anchors": 5,
        "positions": 3,
        "algorithm": algorithm,
        "rank": rank,
        "dtype": "float32",
        "rows": 15,
        "threads": 1,
        "repeat": 1,
    }
    for side in ("ours", "reference"):
        assert document[side]["seconds"] > 0
        assert document[side]["extra_peak_bytes"] >= 0
    assert document["floor_seconds"] > 0
    assert set(document["ratio"]) == {"seconds", "extra_peak_bytes"}
    assert 0 <= document["max_rel_grad_error"] <= 1e-5


ATTENTION = ["--context", "40", "--documents", "2", "--anchors", "5", "--positions", "3"]
ATTENTION += ["--heads", "4", "--kv-heads", "2"]


@pytest.mark.full
def test_attention(measured):
    document = measured("attention", *ATTENTION, "--head-dim", "8", "--repeat", "1", "--threads", "1")
    assert document["sizes"] == {
        "context": 40,
        "documents": 2,
        "anchors": 5,
        "positions": 3,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "dtype": "float32",
        "threads": 1,
        "repeat": 1,
    }
    assert set(document["ratio"]) == {"seconds", "extra_peak_bytes"}
    assert 0 <= document["max_rel_grad_error"] <= 1e-5


def test_attention_refuses_heads_that_cannot_be_shared(refusal):
    said = refusal("attention", "--heads", "3", "--kv-heads", "2")
    assert "--kv-heads" in said
    assert "3 heads" in said


@pytest.mark.parametrize(
    "recipe",
    [
        "dspark-qwen3-4b",
        pytest.param("eagle3-qwen3-8b", marks=pytest.mark.full),
    ],
)
def test_train_step(measured, recipe):
    sizes = ["--recipe", recipe, "--shrink", "64", "--documents", "3", "--length", "24", "--micro-batch-tokens", "40"]
    sizes += ["--num-anchors", "3", "--repeat", "1", "--threads", "1"]
    document = measured("train-step", *sizes)
    assert document["sizes"]["recipe"] == recipe
    assert 24 < document["sizes"]["tokens"] <= 72
    assert document["sizes"]["trained_parameters"] > 0
    assert document["flops"] > 0
    assert set(document["ratio"]) == {"seconds", "extra_peak_bytes", "tokens_per_second"}
    assert document["ours"]["tokens_per_second"] > 0
    # fp32 through five layers or seven steps: both sides compute the same gradients.
    assert 0 <= document["max_rel_grad_error"] <= 1e-4


def test_train_step_refuses_an_unknown_recipe(refusal):
    assert "nobody" in refusal("train-step", "--recipe", "nobody")


@pytest.mark.full
def test_tokens(measured):
    document = measured("tokens", "--rows", "30", "--words", "20", "--repeat", "1")
    assert (document["bench"], document["sizes"]["rows"], document["rows_that_differ"]) == ("tokens", 30, 0)
    assert document["sizes"]["tokens"] > 30 * document["sizes"]["turns"]
    assert set(document["ratio"]) == {"rows_per_second_to_datasets_map"}
    for side in ("ours", "reference"):
        assert document[side]["rows_per_second"] > 0


def test_tokens_says_that_its_reference_is_missing():
    code = (
        "import sys\nsys.modules['datasets'] = None\nfrom deepspec.bench.__main__ import main\n"
        "from deepspec.errors import DeepspecError\n"
        "try:\n    main(['tokens', '--rows', '2'])\nexcept DeepspecError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the package `datasets` is not installed here" in done.stdout


@pytest.mark.full
def test_states(measured):
    sizes = ["--tokens", "3000", "--hidden", "64", "--layers", "2", "--capture-tokens", "600"]
    document = measured("states", *sizes, "--repeat", "1", "--threads", "1")
    assert document["sizes"]["tokens"] == 3000
    ratio = document["ratio"]
    assert set(ratio) == {
        "bytes_int8",
        "bytes_int4",
        "read_to_cat",
        "read_to_cat_shuffled",
        "read_to_cat_int8",
        "read_to_cat_int4",
    }
    # Bytes are no measurement: with vectors of 64 numbers, whose groups are half as large, they are a little more.
    assert 0.5 < ratio["bytes_int8"] < 0.6
    assert 0.3 < ratio["bytes_int4"] < 0.4
    assert all(document[side]["read_bytes_per_second"]["int4"] > 0 for side in ("ours", "reference"))
    assert 0 < document["capture_target_share"] < 1
    assert 0 < document["quality"]["tv_int8"] < document["quality"]["tv_int4"] < 0.2
    assert document["ours"]["read_extra_peak_bytes"] >= 0


def test_people_get_a_table(capsys):
    bench.main(["loss", *SIZES])
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("loss on cpu: vocab=700 ")
    assert [line.split()[0] for line in printed.out.splitlines()[2:]] == [
        "ours", "reference", "ratio", "products", "gradient",
    ]  # fmt: skip


@pytest.mark.parametrize("arguments", [["--vocab", "0"], ["--device", "nowhere"], ["--algorithm", "none"], ["--nope"]])
def test_wrong_usage_is_told_in_a_sentence(refusal, arguments):
    assert refusal("loss", *arguments)


def test_every_bench_is_listed_in_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in bench.BENCHES)


@pytest.mark.full
def test_choosing_imports_nothing_of_the_pipeline():
    """It must run where only the light set is installed."""
    code = (
        "import sys\nfrom deepspec.bench import attention, loss, measuring, tokens, train_step, __main__\n"
        "import sys\nfrom deepspec.bench import attention, loss, measuring, states, train_step, __main__\n"
        "heavy = ('prefect', 'mlflow', 'boto3', 'rich', 'typer', 'datasets', 'matplotlib', 'flows', 'tasks')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[]"


def test_pages_that_stay_are_no_cold_reading(tmp_path):
    path = tmp_path / "states"
    path.write_bytes(bytes(4 << 20))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        with refused(DeepspecError, "cached pages", where=str(path)):
            states._drop_cached_pages([path])
    states._drop_cached_pages([path])
