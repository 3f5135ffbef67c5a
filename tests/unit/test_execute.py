"""What a run does about damage that a reader in another process has met."""

from pathlib import Path
from typing import Any

import pytest

from deepspec.errors import ArtifactDamaged
from deepspec.store import open_store
from tasks.runtime.display import Hidden
from tasks.runtime.execute import _rebuilding
from tasks.runtime.prefect import flow as prefect_flow
from tasks.runtime.run import Run
from tests.fixtures.store import KEY, ingredients, put


class Sayings(Hidden):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize("where", ["in the store", "on the way"])
def test_damage_told_by_a_reader_is_condemned_only_if_the_store_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    store = open_store(str(tmp_path / "store"))
    artifact = put(store, ingredients(), {"data": b"right"})
    display = Sayings()
    run: Run[Any] = Run(None, store, tmp_path, plan=False, display=display)  # type: ignore[type-var]
    found: list[bool] = []

    def flow(run: Run[Any], *_: object) -> dict[str, Any]:
        found.append(run.store.find("tokens", KEY) is not None)
        if len(found) == 1:
            if where == "in the store":
                (artifact.directory() / "data").write_bytes(b"wrong")
            raise ArtifactDamaged("An artifact is damaged: its bytes changed.", kind="tokens", key=KEY, file="data")
        return {}

    monkeypatch.setattr(prefect_flow, "run_as_flow", flow)
    assert _rebuilding(run, flow, None) == {}
    assert found == [True, where == "on the way"]
    assert ("It will be rebuilt" in display.said[0]) == (where == "in the store")
    assert ("the artifact is not" in display.said[0]) == (where == "on the way")
