"""MLflow databases of other versions of MLflow: ours are migrated as a copy, others and newer ones refused."""

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from deepspec.registry.errors import TrackingError
from deepspec.registry.mlflow import schema
from deepspec.registry.mlflow.tracking import Tracking
from tests.fixtures.refused import refused

BACK = 4
"""How many migrations older the older database is: among MLflow's last ones are some that only change columns."""


@pytest.fixture(scope="module")
def present(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a database of the installed MLflow, and a run in it."""
    home = tmp_path_factory.mktemp("present")
    tracking = Tracking.embedded(home)
    tracking.finish(tracking.start_pipeline_run("first", {"train.lr": 0.1}))
    return home


@pytest.fixture
def home(present: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    for file in present.glob("mlflow.db*"):
        shutil.copy(file, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as an earlier MLflow made it: MLflow's own migrations, but for the last few."""
    import sqlalchemy
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base

    path = tmp_path_factory.mktemp("older") / "mlflow.db"
    uri = f"sqlite:///{path}"
    engine = sqlalchemy.create_engine(uri)
    Base.metadata.create_all(engine)
    revisions = [script.revision for script in schema._scripts().walk_revisions()]
    with engine.begin() as connection:
        config = _get_alembic_config(uri)
        config.attributes["connection"] = connection
        command.upgrade(config, revisions[BACK])
    engine.dispose()
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (7, 'from before', 'active')"
        )
    connection.close()
    return path


def set_revision(path: Path, revision: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.close()


def experiments(path: Path) -> set[str]:
    connection = sqlite3.connect(path)
    found = {name for (name,) in connection.execute("SELECT name FROM experiments")}
    connection.close()
    return found


def test_the_present_schema_is_left_alone(home: Path) -> None:
    assert schema.revision_of(home / "mlflow.db") == schema.head()
    assert Tracking.embedded(home).list_models() == ()
    assert not list(home.glob("*.before-*"))


def test_an_older_database_of_ours_is_migrated_and_kept_as_it_was(
    older: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(older, path)
    before = schema.revision_of(path)
    assert before != schema.head()
    tracking = Tracking.embedded(tmp_path)
    tracking.finish(tracking.start_pipeline_run("later", {}))
    assert schema.revision_of(path) == schema.head()
    assert experiments(path) == {"Default", "from before", "deepspec"}
    (kept,) = tmp_path.glob("mlflow.db.before-*")
    assert schema.revision_of(kept) == before
    assert experiments(kept) == {"from before"}
    assert kept.name in caplog.text
    assert not list(tmp_path.glob("*.new*"))


def test_a_migration_that_fails_or_meets_a_writer_changes_nothing(
    older: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(older, path)
    before = schema.revision_of(path)

    def written_meanwhile(copy: Path) -> None:
        set_revision(copy, str(schema.head()))
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE experiments SET name = 'written meanwhile'")
        connection.close()

    monkeypatch.setattr(schema, "_upgrade", written_meanwhile)
    with refused(TrackingError, "Another process", where="mlflow.db"):
        Tracking.embedded(tmp_path).list_models()
    assert schema.revision_of(path) == before
    assert experiments(path) == {"written meanwhile"}
    monkeypatch.undo()

    with sqlite3.connect(path) as connection:  # what a migration does not expect
        connection.execute("DROP TABLE experiments")
    connection.close()
    with refused(TrackingError, "schema", where="mlflow.db"):
        Tracking.embedded(tmp_path).list_models()
    assert schema.revision_of(path) == before


def test_somebody_elses_older_database_is_refused_with_the_command(older: Path, tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    shutil.copy(older, path)
    with refused(TrackingError, "older", where="theirs.db") as told:
        Tracking(f"sqlite:///{path}", None).list_models()
    assert f"mlflow db upgrade sqlite:///{path}" in str(told.value.remedy)
    assert experiments(path) == {"from before"}


@pytest.mark.parametrize("ours", [True, False])
def test_a_newer_database_is_refused_and_left_as_it_is(home: Path, ours: bool) -> None:
    path = home / "mlflow.db"
    set_revision(path, "ffffffffffff")
    before = path.read_bytes()
    tracking = Tracking.embedded(home) if ours else Tracking(f"sqlite:///{path}", None)
    with refused(TrackingError, "newer", "ffffffffffff", where="mlflow.db"):
        tracking.list_models()
    assert path.read_bytes() == before


@pytest.mark.parametrize("whole", [True, False])
def test_what_mlflow_itself_says_of_a_newer_database_is_understood(home: Path, whole: bool) -> None:
    """A server's database is only seen through MLflow: its words for a revision that it does not know."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path = home / "mlflow.db"
    set_revision(path, "ffffffffffff")
    if not whole:  # a table that this MLflow has and the other has not: it tries to migrate first
        with sqlite3.connect(path) as connection:
            connection.execute("DROP TABLE budget_policies")
        connection.close()
    with pytest.raises(Exception, match="ffffffffffff") as said:
        SqlAlchemyStore(f"sqlite:///{path}", str(home))
    assert schema.mentioned_in(said.value) == "ffffffffffff"
    newer = schema.refusal("ffffffffffff", "MLFLOW_TRACKING_URI=postgresql://db/mlflow", "postgresql://db/mlflow")
    assert newer.where == "MLFLOW_TRACKING_URI=postgresql://db/mlflow"
    assert "newer" in newer.what
    older = schema.refusal(str(schema.head()), "MLFLOW_TRACKING_URI=x", "postgresql://db/mlflow")
    assert "mlflow db upgrade postgresql://db/mlflow" in str(older.remedy)
    assert schema.mentioned_in(OSError("no such host")) is None


def test_a_file_that_is_no_database_of_mlflow_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"somebody's notes, quite long enough not to be taken for an empty database" * 20)
    before = path.read_bytes()
    with refused(TrackingError, "not a database"):
        Tracking.embedded(tmp_path).list_models()
    assert path.read_bytes() == before


def test_only_places_in_the_old_folder_are_corrected(home: Path, tmp_path: Path) -> None:
    path, root = home / "mlflow.db", tmp_path / "mlartifacts"
    root.mkdir()
    with sqlite3.connect(path) as connection:
        (old,) = connection.execute("SELECT artifact_location FROM experiments WHERE name = 'deepspec'").fetchone()
        connection.execute(
            "INSERT INTO runs (run_uuid, experiment_id, artifact_uri) VALUES ('a', 1, ?), ('b', 1, 's3://bucket/b')",
            (f"{old}-else/a",),
        )
    connection.close()
    schema.relocate(path, "deepspec", root)
    connection = sqlite3.connect(path)
    found = {uri for (uri,) in connection.execute("SELECT artifact_uri FROM runs")}
    connection.close()
    assert {f"{old}-else/a", "s3://bucket/b"} < found
    assert {os.path.commonpath([uri, root]) for uri in found if uri.startswith(str(root))} == {str(root)}


def test_a_server_keeps_its_artifacts_where_they_are(home: Path, tmp_path: Path) -> None:
    path, root = home / "mlflow.db", tmp_path / "mlartifacts"
    root.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE experiments SET artifact_location = 's3://bucket/mlflow'")
    connection.close()
    schema.relocate(path, "deepspec", root)
    connection = sqlite3.connect(path)
    assert set(connection.execute("SELECT artifact_location FROM experiments")) == {("s3://bucket/mlflow",)}
    connection.close()
