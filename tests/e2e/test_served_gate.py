"""A run whose recipe names a staging server: what the server does decides, and each run asks it anew."""

from pathlib import Path

import pytest

from tests.e2e.conftest import Home
from tests.fixtures.openai_server import openai_server

pytestmark = pytest.mark.full


def test_a_staging_server_that_is_away_refuses_and_the_next_run_asks_again(warm: Home, tmp_path: Path) -> None:
    """Over ten seconds: three runs, each of which decodes what the server has to answer."""
    target, draft = warm.path / "tiny" / "target", warm.artifact_file("train", "draft")
    settings = {"target": str(target), "draft": str(draft), "says_rounds": "detailed"}
    with openai_server(target, tmp_path / "log", model="target", **settings) as server:
        away = server.url
    asked = ("--set", "name=staged", "--set", f"gates.endpoint={away}")
    warm.run("run", "tiny", *asked, code=3)
    first = warm.record()
    assert first["status"] == "refused"
    (reason,) = [one for one in first["verdict"]["reasons"] if one["gate"] == "served"]
    assert not reason["passed"]
    assert f"The server at {away} was not asked to the end: " in reason["sentence"]
    warm.run("run", "tiny", *asked, code=3)
    second = warm.record()
    assert [stage["status"] for stage in second["stages"] if stage["name"] == "gate"] == ["ran"]
    with openai_server(target, tmp_path / "log", model="target", **settings) as server:
        warm.run("run", "tiny", "--set", "name=staged", "--set", f"gates.endpoint={server.url}", code=None)
    (reason,) = [one for one in warm.record()["verdict"]["reasons"] if one["gate"] == "served"]
    assert reason["sentence"].startswith(f"The server at {server.url}: ")
