"""A tracking database appears complete or not at all, made by one process at a time."""

import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from deepspec.registry.mlflow.database import prepare


def migrate(uri: str) -> None:
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as connection:
        connection.execute("CREATE TABLE done (x)")
        connection.commit()
    connection.close()


def tables(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
    finally:
        connection.close()


def test_a_new_database_is_complete_and_has_a_write_ahead_log(tmp_path: Path) -> None:
    path = tmp_path / "home" / "mlflow.db"
    prepare(path, migrate)
    assert tables(path) == ["done"]
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    assert sorted(p.name for p in path.parent.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_an_existing_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"somebody's")
    prepare(path, lambda uri: pytest.fail(f"migrated {uri}"))
    assert path.read_bytes() == b"somebody's"


def test_interrupted_migrations_leave_no_database(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"

    def killed(uri: str) -> None:
        migrate(uri)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(path, killed)
    assert not path.exists()
    prepare(path, migrate)  # "CREATE TABLE" would fail on what the first try left
    assert tables(path) == ["done"]
    assert "MLFLOW_SQLALCHEMYSTORE_POOLCLASS" not in os.environ


def test_of_many_at_once_one_migrates_and_the_others_wait(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    migrated: list[str] = []

    def slowly(uri: str) -> None:
        migrated.append(uri)
        time.sleep(0.05)
        migrate(uri)

    seen: list[bool] = []

    def first_use() -> None:
        prepare(path, slowly)
        seen.append(tables(path) == ["done"])

    threads = [threading.Thread(target=first_use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(migrated) == 1
    assert seen == [True] * 6
