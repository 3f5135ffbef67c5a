"""Checkpoints: complete and checked, or passed over."""

import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepspec.errors import ArtifactError, StoreFull
from deepspec.training.checkpoint import Checkpoints, TrainingState
from tests.fixtures.refused import refused


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"weight.a": torch.full((3, 4), value), "first_moment.a": torch.full((3, 4), -value)}


def at(folder: Path, *, keep: int = 2, identity: str = "one") -> Checkpoints:
    return Checkpoints(folder, keep=keep, identity=identity)


def saved(checkpoints: Checkpoints, state: TrainingState, content: dict[str, torch.Tensor]) -> None:
    checkpoints.save(state, content)
    checkpoints.wait()


def resumed(folder: Path) -> tuple[TrainingState | None, float]:
    room = tensors(float("nan"))
    state = at(folder).resume(room)
    assert torch.equal(room["weight.a"], -room["first_moment.a"]) or state is None
    return state, float(room["weight.a"][0, 0])


def test_the_newest_comes_back(tmp_path: Path) -> None:
    checkpoints = at(tmp_path)
    assert checkpoints.resume(tensors(0)) is None
    for step in (5, 10, 15):
        saved(checkpoints, TrainingState(step=step, metrics_mark=7), tensors(step))
    assert resumed(tmp_path) == (TrainingState(step=15, metrics_mark=7), 15.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000010", "step-000000015"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest", "state"])
def test_a_damaged_newest_is_passed_over(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = at(tmp_path)
    saved(checkpoints, TrainingState(step=1), tensors(1))
    saved(checkpoints, TrainingState(step=2), tensors(2))
    newest = tmp_path / "step-000000002"
    data = newest / "__0_0.distcp"
    if damage == "flip":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif damage == "truncate":
        data.write_bytes(data.read_bytes()[:-1])
    elif damage == "delete":
        (newest / ".metadata").unlink()
    elif damage == "manifest":
        (newest / "manifest.json").write_text("{")
    else:
        (newest / "state.json").write_text((newest / "state.json").read_text().replace("2", "3"))
    assert resumed(tmp_path) == (TrainingState(step=1), 1.0)
    assert "step-000000002 is passed over" in caplog.text


def test_without_its_best_checkpoint_one_is_of_no_use(tmp_path: Path) -> None:
    checkpoints = at(tmp_path, keep=3)
    saved(checkpoints, TrainingState(step=1), tensors(1))
    saved(checkpoints, TrainingState(step=2, best_step=2, best_score=3.0), tensors(2))
    saved(checkpoints, TrainingState(step=3, best_step=2, best_score=3.0), tensors(3))
    assert resumed(tmp_path)[0] == TrainingState(step=3, best_step=2, best_score=3.0)
    (tmp_path / "step-000000002/.metadata").unlink()
    with refused(ArtifactError, ".metadata", where="step-000000002"):
        checkpoints.load(2, tensors(0))
    assert resumed(tmp_path)[0] == TrainingState(step=1)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000000001"]


def test_an_older_checkpoint_keeps_the_best_it_refers_to(tmp_path: Path) -> None:
    checkpoints = at(tmp_path)
    for step, best in ((1, 1), (2, 1), (3, 3)):
        saved(checkpoints, TrainingState(step=step, best_step=best, best_score=float(best)), tensors(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-00000000{step}" for step in (1, 2, 3)]
    (tmp_path / "step-000000003/.metadata").unlink()
    again = at(tmp_path)
    assert again.resume(tensors(0)) == TrainingState(step=2, best_step=1, best_score=1.0)
    saved(again, TrainingState(step=4, best_step=1, best_score=1.0), tensors(4))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-00000000{step}" for step in (1, 2, 4)]


def test_a_half_written_one_is_not_there(tmp_path: Path) -> None:
    saved(at(tmp_path), TrainingState(step=1), tensors(1))
    (tmp_path / "step-000000001").rename(tmp_path / ".step-000000002")
    assert resumed(tmp_path)[0] is None
    assert not list(tmp_path.iterdir())


def test_another_training_is_refused(tmp_path: Path) -> None:
    saved(at(tmp_path), TrainingState(step=1), tensors(1))
    with refused(ArtifactError, "another training", where="step-000000001"):
        at(tmp_path, identity="two").resume(tensors(0))


def test_other_tensors_are_refused(tmp_path: Path) -> None:
    saved(at(tmp_path), TrainingState(step=1), tensors(1))
    with refused(ArtifactError, "fit", where="step-000000001"):
        at(tmp_path).resume({"weight.b": torch.zeros(3)})


def test_a_full_disk_is_named_and_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    checkpoints = at(tmp_path)
    saved(checkpoints, TrainingState(step=1), tensors(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = {name: torch.zeros(300, 300) for name in tensors(0)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))  # writing beyond it fails like a full disk
    try:
        with refused(StoreFull, "checkpoint", where=str(tmp_path)):
            saved(checkpoints, TrainingState(step=2), large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert resumed(tmp_path)[0] == replace(TrainingState(), step=1)


@pytest.mark.parametrize("place", ["manifest", "both"])
def test_a_checkpoint_of_a_newer_deepspec_is_refused_and_stays(tmp_path: Path, place: str) -> None:
    saved(at(tmp_path), TrainingState(step=1), tensors(1))
    saved(at(tmp_path), TrainingState(step=2), tensors(2))
    newest = tmp_path / "step-000000002" / "manifest.json"
    # Its files may be described otherwise: that must not look like damage, for what is damaged is removed.
    newest.write_text('{"format": 2, "tensors": []}' if place == "manifest" else '{"format": 2, "files": {}}')
    with refused(ArtifactError, "checkpoint", "format 2", where="step-000000002"):
        at(tmp_path).resume(tensors(0))
    with refused(ArtifactError, "format 2", where="step-000000002"):
        at(tmp_path).load(2, tensors(0))
    assert newest.exists()


def test_a_checkpoint_without_a_format_is_of_the_first(tmp_path: Path) -> None:
    saved(at(tmp_path), TrainingState(step=1), tensors(1))
    manifest = tmp_path / "step-000000001" / "manifest.json"
    described = json.loads(manifest.read_text())
    assert described.pop("format") == 1
    manifest.write_text(json.dumps(described))  # as the first version wrote it
    assert resumed(tmp_path) == (TrainingState(step=1), 1.0)
