"""What an error says of Prefect's server: one sentence that names the variable, or nothing; and what is deployed."""

from pathlib import Path
from typing import get_args

import httpx
import pytest
import yaml

from deepspec.errors import DataError, LaunchError
from deepspec.recipe import read_yaml
from deepspec.record import RunStatus
from tasks.runtime.prefect import server as prefect_server
from tasks.runtime.prefect.flow import STATES

ADDRESS = "http://me:hunter2@prefect.example:4200/api"


def request(address: str = "http://prefect.example:4200/api/flow_runs/") -> httpx.Request:
    return httpx.Request("POST", address)


def status(code: int, asked: httpx.Request | None = None) -> httpx.HTTPStatusError:
    asked = asked or request()
    return httpx.HTTPStatusError("no", request=asked, response=httpx.Response(code, request=asked))


def caused(outer: Exception, inner: Exception) -> Exception:
    """`outer` as it is when raised from `inner`."""
    outer.__cause__ = inner
    return outer


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", ADDRESS)


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("refused", request=request()),
        httpx.ReadTimeout("slow", request=request()),
        httpx.RemoteProtocolError("cut"),
        status(503),
        caused(RuntimeError("Failed to reach API at http://prefect.example:4200/api/"), httpx.ConnectError("refused")),
    ],
)
def test_every_form_of_a_lost_server_is_one_sentence(error: Exception) -> None:
    found = prefect_server.named(error)
    assert isinstance(found, LaunchError)
    assert found.where == "PREFECT_API_URL http://prefect.example:4200"
    assert "hunter2" not in str(found)


@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_password_names_its_variable(code: int) -> None:
    found = prefect_server.named(status(code))
    assert found is not None
    assert "does not accept the password" in str(found)
    assert "PREFECT_API_AUTH_STRING" in str(found)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("something else"),
        httpx.ConnectError("refused", request=request("https://hub.example/model")),
        status(401, request("http://prefect.example:9999/other")),
        caused(DataError("bad rows"), httpx.ConnectError("refused")),
    ],
)
def test_what_is_about_other_things_is_left_alone(error: Exception) -> None:
    assert prefect_server.named(error) is None


def test_no_deployment_writes_over_what_a_person_has_switched() -> None:
    """A new schedule is what the file says, any other what the server says: test_stack.py deploys it again."""
    deployed = yaml.safe_load(Path("infra/prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    assert deployed
    for deployment in deployed:
        assert "paused" not in deployment
        (step,) = (step for build in deployment["build"] for name, step in build.items() if "as_on_the_server" in name)
        assert step["deployment"].endswith(f"/{deployment['name']}")
        slugs = [schedule["slug"] for schedule in deployment["schedules"]]
        assert step["active"].keys() == set(slugs)
        taken = [schedule["active"] for schedule in deployment["schedules"]]
        assert taken == [f"{{{{ {step['id']}.{slug} }}}}" for slug in slugs]


def test_every_way_a_run_ends_is_a_state_of_its_flow_run() -> None:
    from prefect.client.schemas.objects import TERMINAL_STATES, StateType

    assert STATES.keys() == set(get_args(RunStatus))
    assert {StateType(kind) for _, kind in STATES.values()} <= TERMINAL_STATES
    assert len({name for name, _ in STATES.values()}) == len(STATES)


def test_a_flow_run_is_named_by_its_recipe_and_not_by_where_that_lies(tmp_path: Path) -> None:
    from flows.nightly import name_of

    path = tmp_path / "some file.yaml"
    path.write_text(yaml.safe_dump({**read_yaml("tiny"), "name": "ours"}))
    assert name_of("tiny", None) == "tiny"
    assert name_of(str(path), []) == "ours"
    assert name_of(str(path), ["name=theirs"]) == "theirs"
    path.write_text("[")
    assert name_of(str(path), None) == "some file"
