"""The platform on a real PostgreSQL, started by the test."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from platforms import atalaia, free_port, post

from flows.processes import belonging

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

pytest.importorskip("psycopg2", reason="MLflow needs psycopg2 for PostgreSQL")


def _program(name: str) -> str:
    found = shutil.which(name) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    if found is None:
        pytest.skip(f"PostgreSQL's {name} is not on this machine")
    return found


def _owner() -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    return {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}


@pytest.fixture
def database() -> Iterator[str]:
    """The address of an empty database with a password."""
    # Beneath /tmp itself: the tests' own folders are closed to other users.
    folder, port = Path(f"/tmp/atalaia-postgresql-{os.getpid()}"), free_port()
    folder.mkdir()
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody", "nogroup")
        else:
            folder.chmod(0o700)
        password = folder.with_suffix(".password")
        password.write_text("s3cret-word")
        password.chmod(0o644)
        create = [_program("initdb"), "-D", str(folder / "data"), "-U", "team", "--auth=scram-sha-256", "-E", "UTF8"]
        subprocess.run([*create, f"--pwfile={password}"], cwd="/", check=True, capture_output=True, **_owner())
        options = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-p", str(port)]
        server = subprocess.Popen(
            [_program("postgres"), "-D", str(folder / "data"), *options],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **_owner(),
        )
        try:
            time.sleep(1)
            yield f"postgresql://team:s3cret-word@127.0.0.1:{port}/postgres"
        finally:
            server.terminate()
            server.wait(timeout=60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".password").unlink(missing_ok=True)


def _tables(address: str) -> dict[str, int]:
    import psycopg2

    with psycopg2.connect(address) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT table_schema, count(*) FROM information_schema.tables GROUP BY 1")
        return {schema: number for schema, number in cursor.fetchall() if schema in {"prefect", "mlflow", "public"}}


def test_both_servers_keep_their_tables_in_one_database_and_nobody_shows_its_password(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefect_port, mlflow_port = free_port(), free_port()
    ports = ("--prefect-port", str(prefect_port), "--mlflow-port", str(mlflow_port))
    try:
        done = atalaia("up", "--no-gpu", *ports, home=tmp_path, ATALAIA_DATABASE=database)
        assert done.returncode == 0, done.stderr
        tables = _tables(database)
        assert tables["prefect"] > 20
        assert tables["mlflow"] > 20
        assert "public" not in tables
        found = post(f"http://127.0.0.1:{prefect_port}", "deployments/filter", {})
        assert {deployment["name"] for deployment in found} >= {"experiment", "train", "nightly-retrain"}
        _register_a_model(f"http://127.0.0.1:{mlflow_port}", monkeypatch)
        commands = subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout
        assert "s3cret-word" not in commands
        assert "s3cret-word" not in json.dumps([path.read_text() for path in (tmp_path / "services").iterdir()])
        assert not list(tmp_path.rglob("*.db"))
    finally:
        atalaia("down", home=tmp_path)
    assert belonging(str(tmp_path / "services")) == []


def _register_a_model(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(address)
    client.create_registered_model("hdfs")
    run = client.create_run(client.create_experiment("atalaia"))
    client.create_model_version("hdfs", f"runs:/{run.info.run_id}/detector", run.info.run_id)
    client.set_registered_model_alias("hdfs", "champion", "1")
    assert client.get_model_version_by_alias("hdfs", "champion").run_id == run.info.run_id
