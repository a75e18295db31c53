"""The local stack: found again, kept data, crashes, and what goes wrong. On stacks of its own, never on the suite's."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from confluent_kafka.admin import AdminClient

from benchmarks.bench import create_topic
from eventspine.local import LocalStack, LocalStackError
from eventspine.local.jars import fetch_jars
from eventspine.local.kafka import KafkaService
from eventspine.local.postgres import PostgresService

_LOCK = Path(__file__).parents[1] / "java" / "java.lock"


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[LocalStack]:
    stack = LocalStack(tmp_path / "data")
    yield stack
    stack.down()


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[PostgresService]:
    service = PostgresService(tmp_path / "postgres")
    yield service
    service.stop()


def states(stack: LocalStack) -> list[str]:
    return [service.state for service in stack.status()]


async def query(dsn: str, statement: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def test_life_of_a_stack(own_stack: LocalStack) -> None:
    assert states(own_stack) == ["stopped", "stopped"]
    assert own_stack.endpoints() is None
    said: list[str] = []
    endpoints = own_stack.up(on_progress=said.append)
    assert states(own_stack) == ["running", "running"]
    assert any("starting kafka" in line for line in said)

    pids = [service.pid for service in own_stack.status()]
    again = LocalStack(own_stack.folder)  # as another program finds it
    assert again.up() == endpoints == again.endpoints()
    assert [service.pid for service in again.status()] == pids

    asyncio.run(query(endpoints.postgres_dsn, "CREATE TABLE kept AS SELECT 42 AS answer"))
    create_topic(endpoints.kafka_bootstrap, "kept")

    own_stack.postgres.kill()
    own_stack.kafka.kill()
    assert states(own_stack) == ["crashed", "crashed"]
    assert own_stack.up() == endpoints  # on the same ports, with the same data
    assert asyncio.run(query(endpoints.postgres_dsn, "SELECT answer FROM kept")) == 42
    assert "kept" in AdminClient({"bootstrap.servers": endpoints.kafka_bootstrap}).list_topics(timeout=10).topics

    own_stack.down()
    own_stack.down()
    assert states(own_stack) == ["stopped", "stopped"]


def test_a_cluster_id_may_begin_with_a_hyphen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uuid.uuid4", lambda: UUID(int=0xF8 << 120))
    service = KafkaService(tmp_path / "kafka")
    service.folder.mkdir()
    service.make_data(lambda line: None)
    assert "cluster.id=-AAAAAAAAAAAAAAAAAAAAA" in (tmp_path / "kafka" / "data" / "meta.properties").read_text()


def test_two_at_once_start_one(tmp_path: Path) -> None:
    """Two programs run `up` on one folder at the same time."""
    folder = tmp_path / "data"
    command = [sys.executable, "-m", "eventspine", "--folder", str(folder), "up", "--json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        outputs = [process.communicate(timeout=60) for process in both]
        assert [process.returncode for process in both] == [0, 0], outputs
        assert outputs[0][0] == outputs[1][0]
    finally:
        subprocess.run([*command[:-2], "down"], check=True)


def test_half_made_data_is_made_again(own_postgres: PostgresService) -> None:
    """A crash in mid-initdb leaves the folder under its other name."""
    half = own_postgres.folder / "data.half"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    own_postgres.start()
    assert own_postgres.status().state == "running"
    assert not half.exists()


def test_taken_port(own_postgres: PostgresService) -> None:
    own_postgres.start()
    port = own_postgres.port
    assert port is not None
    own_postgres.stop()
    with socket.socket() as foreign:
        foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        foreign.bind(("127.0.0.1", port))
        foreign.listen()
        with pytest.raises(LocalStackError, match=f"port {port} is taken by another program"):
            own_postgres.start(port)
        own_postgres.start()  # the remembered port is taken: another one
        assert own_postgres.port != port


def test_pid_that_the_system_gave_to_another_is_left_alone(own_postgres: PostgresService) -> None:
    own_postgres.folder.mkdir(parents=True)
    (own_postgres.folder / "state.json").write_text(f'{{"port": 1, "pid": {os.getpid()}, "born": 12345.0}}')
    assert own_postgres.status().state == "crashed"
    own_postgres.stop()  # this very process would end if it were taken for the server


def test_server_that_ends_at_once_says_why(own_postgres: PostgresService) -> None:
    own_postgres.start()
    own_postgres.stop()
    (own_postgres.folder / "data" / "PG_VERSION").write_text("12\n")
    with pytest.raises(LocalStackError, match="ended while it started") as caught:
        own_postgres.start()
    assert "initialized by PostgreSQL version 12" in str(caught.value)
    assert caught.value.log_path is not None
    assert str(caught.value.log_path) in str(caught.value)


def test_wrong_jar_is_fetched_again_and_a_wrong_lock_is_refused(tmp_path: Path) -> None:
    ours = fetch_jars(_LOCK, lambda _: None)  # in the user's cache, from which this test makes its own
    cache = tmp_path / "cache"
    for jar in ours:
        copy = cache / "maven" / jar.relative_to(_maven_root(jar))
        copy.parent.mkdir(parents=True)
        shutil.copy(jar, copy)
    broken = next(cache.rglob("avro-*.jar"))
    broken.write_bytes(b"half a jar")
    fetched = fetch_jars(_LOCK, lambda _: None, cache)
    assert [jar.read_bytes() for jar in fetched] == [jar.read_bytes() for jar in ours]

    lock = tmp_path / "wrong.lock"
    lock.write_text("org.apache.avro:avro:1.12.1 " + "0" * 64 + "\n")
    with pytest.raises(LocalStackError, match=r"avro:1\.12\.1 can't be had in 3 tries: its content is not what was locked"):
        fetch_jars(lock, lambda _: None, cache)


def _maven_root(jar: Path) -> Path:
    return next(parent for parent in jar.parents if parent.name == "maven")
