"""The command line as people and scripts use it: real processes, real servers."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import asyncpg

from eventspine import PostgresEventStore
from tests.event_types import ORDER_PLACED, placed
from tests.processes import processes
from tests.waiting import wait_for


async def run(*arguments: str, dsn: str = "", folder: Path, code: int = 0, output: bool = False) -> str:
    """Run `eventspine …` in a folder; return what it printed, on standard output if all is well (or with `output`), else on
    standard error."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EVENTSPINE_")}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "eventspine", *arguments],
        stdin=subprocess.DEVNULL,
        env=environment | ({"EVENTSPINE_POSTGRES_DSN": dsn} if dsn else {}),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 or output else done.stderr


async def test_from_an_empty_database_to_an_event(empty_database: str, tmp_path: Path) -> None:
    assert "run `eventspine migrate`" in await run("schema", "list", dsn=empty_database, folder=tmp_path, code=2)
    assert await run("migrate", dsn=empty_database, folder=tmp_path) == "migrated to version 2\n"
    assert await run("migrate", dsn=empty_database, folder=tmp_path) == "nothing to do\n"
    (tmp_path / "OrderPlaced.avsc").write_text(ORDER_PLACED.definition)
    said = await run("schema", "register", "OrderPlaced.avsc", dsn=empty_database, folder=tmp_path)
    assert said == "OrderPlaced version 1 is registered\n"
    listed = json.loads(await run("schema", "list", "--json", dsn=empty_database, folder=tmp_path))
    assert listed == {"schema_id": 1, "event_type": "OrderPlaced", "version": 1}

    async with asyncpg.create_pool(empty_database, min_size=1, max_size=2) as pool:
        store = PostgresEventStore(pool)  # knows the type from the database
        recorded = [(await store.append(f"Order-{n}", "Order", [placed(f"c{n}")], 0))[0] for n in range(3)]
    lines = (await run("events", "tail", "--last", "2", "--json", dsn=empty_database, folder=tmp_path)).splitlines()
    assert [json.loads(line)["event_id"] for line in lines] == [str(event.event_id) for event in recorded[1:]]
    assert len((await run("events", "tail", "--from", "0", dsn=empty_database, folder=tmp_path)).splitlines()) == 3
    shown = await run("streams", "show", "Order-1", dsn=empty_database, folder=tmp_path)
    assert "Order-1@1  OrderPlaced" in shown
    assert "no events" in await run("streams", "show", "Order-9", dsn=empty_database, folder=tmp_path, code=1)


async def test_mistakes_get_a_sentence(tmp_path: Path, database: str) -> None:
    assert "eventspine up" in await run("migrate", folder=tmp_path, code=2)
    assert "use postgresql://" in await run("migrate", dsn="mysql://x", folder=tmp_path, code=2)
    assert "is away" in await run("migrate", dsn="postgresql://nobody@127.0.0.1:1/x", folder=tmp_path, code=1)
    assert "kafka_bootstrap is not set" in await run("relay", "run", dsn=database, folder=tmp_path, code=2)
    (tmp_path / "eventspine.toml").write_text("postgres = 1")
    assert "there is no setting 'postgres'" in await run("migrate", folder=tmp_path, code=2)


async def test_tail_follows(database: str, store: PostgresEventStore, tmp_path: Path) -> None:
    await store.append("Order-1", "Order", [placed()], 0)
    follow = [sys.executable, "-m", "eventspine", "events", "tail", "--follow", "--json"]
    output = tmp_path / "out"
    with output.open("wb") as stream:
        tail = subprocess.Popen(follow, env=os.environ | {"EVENTSPINE_POSTGRES_DSN": database}, stdout=stream, cwd=tmp_path)
    try:
        await wait_for(lambda: output.read_text().count("\n"), lambda lines: lines == 1)
        await store.append("Order-1", "Order", [placed()], 1)
        await wait_for(lambda: output.read_text().count("\n"), lambda lines: lines == 2)
    finally:
        tail.kill()
        tail.wait(10)


async def test_projection_that_fails_says_where(
    database: str, kafka: str, topic_prefix: str, store: PostgresEventStore, pool: asyncpg.Pool, tmp_path: Path
) -> None:
    """A handler that can't take an event ends the consumer; nothing of the batch is written, nothing is skipped."""
    (tmp_path / "broken.py").write_text(
        "from eventspine import Projection, Table, on\n"
        "class Broken(Projection):\n"
        "    table = Table('broken', columns={'id': 'text'}, key='id')\n"
        "    @on('OrderPlaced')\n"
        "    def placed(self, event, rows):\n"
        "        rows.upsert(id=event.stream_id)\n"
        "        if event.data['total_cents'] == 7: raise ValueError('seven')\n"
    )
    for number in range(10):
        await store.append(f"Order-{number}", "Order", [placed(total_cents=number)], 0)
    async with processes(database, kafka, topic_prefix, tmp_path) as started:
        relay = started.relay()
        consumer = started.command(["consume", "broken:Broken"], folder=tmp_path)
        assert await consumer.ended() == 1
        assert "projection broken failed at OrderPlaced (stream 'Order-7', version 1" in consumer.said
        assert "ValueError('seven')" in consumer.said
        await relay.stop()
    rows = {row["id"] for row in await pool.fetch("SELECT id FROM broken")}
    assert "Order-7" not in rows
    assert await pool.fetchval("SELECT sum(events) FROM projection_offsets") == len(rows)
