"""The recipe's section `evaluate`."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from deepspec.evaluation.config import Config


def test_a_path_stands_for_a_benchmark() -> None:
    config = Config.model_validate({"benchmarks": {"math": "math.jsonl", "code": {"path": "c", "share": 0.5}}})
    assert config.benchmarks["math"].path == "math.jsonl"
    assert config.benchmarks["math"].share == 1.0
    assert config.benchmarks["code"].share == 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"benchmarks": {"a/b": "x"}},
        {"benchmarks": {"gate": "x"}},
        {"benchmarks": {"": "x"}},
        {"benchmarks": {"a": ""}},
        {"benchmarks": {"a": {"path": "x", "share": 0}}},
        {"benchmarks": {"a": {"path": "x", "num_prompts": 0}}},
        {"sampling": {"temperature": -1}},
        {"calibration": {"min_temperature": 2, "max_temperature": 1}},
        {"max_new_token": 5},
    ],
)
def test_wrong_sections_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate(wrong)


def test_configs_and_metrics_import_without_torch() -> None:
    code = (
        "import sys, deepspec.evaluation.config, deepspec.evaluation.metrics, deepspec.evaluation.calibration.fit,"
        " deepspec.evaluation.prompts.selection; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
