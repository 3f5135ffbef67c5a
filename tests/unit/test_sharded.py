"""Which of Prefect's task runners a recipe names; what they do is in integration/test_states_in_parts.py."""

import sys

import pytest

from deepspec.errors import RecipeError
from tasks.runtime.prefect.fan_out import _task_runner
from tests.fixtures.refused import refused


def test_runners_that_come_with_prefect() -> None:
    from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

    assert isinstance(_task_runner("threads", 2), ThreadPoolTaskRunner)
    assert isinstance(_task_runner("processes", 2), ProcessPoolTaskRunner)


@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_one_that_is_not_installed_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"prefect_{kind}", None)
    with refused(RecipeError, kind, where="run.task_runner") as caught:
        _task_runner(kind, 2)
    assert f"pip install prefect-{kind}" in str(caught.value.remedy)
