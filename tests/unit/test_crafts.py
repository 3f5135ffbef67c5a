"""The small crafts that every room uses: files that appear whole, and numbers drawn by name."""

from pathlib import Path

import pytest

from deepspec.atomic_write import replacing, write_text
from deepspec.keyed_random import fraction, integer


def fail_half_way(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise InterruptedError


def test_a_file_that_is_not_finished_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "ä")
    with pytest.raises(InterruptedError):
        fail_half_way(path)
    assert path.read_text(encoding="utf-8") == "ä"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_draw_depends_on_its_name_alone() -> None:
    assert integer("split/0/a", bits=63) == integer("split/0/a") >> 1
    assert fraction("split/0/a", bits=48) == (integer("split/0/a") >> 16) / 2**48
    draws = [fraction(f"split/0/{name}") for name in range(2000)]
    assert 0 <= min(draws) < 0.01
    assert 0.99 < max(draws) < 1
    assert abs(sum(draws) / len(draws) - 0.5) < 0.02
