"""The command line as people and scripts use it: real processes, real servers."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg

from eventspine import Event, PostgresEventStore
from eventspine.store.postgres.group import WorkerGroup
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
    assert await run("migrate", dsn=empty_database, folder=tmp_path) == "migrated to version 7\n"
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


async def test_looking_at_the_log(store: PostgresEventStore, database: str, tmp_path: Path) -> None:
    tagged = Event(event_type="OrderPlaced", data=placed().data, tags=("seat:1",), metadata={"correlation_id": "k"})
    await store.append("Order-1", "Order", [placed(), tagged], 0)
    await store.append("Basket-1", "Basket", [placed()], 0)

    async def said(*arguments: str, code: int = 0) -> str:
        return await run(*arguments, dsn=database, folder=tmp_path, code=code)

    async def positions(*arguments: str) -> list[int]:
        return [json.loads(line)["global_position"] for line in (await said("events", "tail", "--json", *arguments)).splitlines()]

    assert await positions() == [1, 2, 3]
    assert await positions("--category", "Order", "--last", "1") == [2]
    assert await positions("--tag", "seat:1") == await positions("--correlation", "k") == [2]
    assert await positions("--from", "1", "--category", "Basket", "--category", "Order") == [2, 3]
    shown = await said("events", "show", str(tagged.event_id))
    assert "Order-1@2  OrderPlaced" in shown
    assert "[seat:1]" in shown
    assert "correlation_id: k" in shown
    assert "there is no event" in await said("events", "show", str(UUID(int=7)), code=1)
    backwards = (await said("streams", "show", "Order-1", "--backwards")).splitlines()
    assert ["@2" in backwards[0], "@1" in backwards[1]] == [True, True]
    [order] = json.loads(await said("streams", "list", "Order", "--json"))
    assert (order["stream_id"], order["version"]) == ("Order-1", 2)
    categories = json.loads(await said("streams", "categories", "--json"))
    assert [(row["category"], row["streams"], row["events"]) for row in categories] == [("Basket", 1, 1), ("Order", 1, 2)]
    assert "Basket" in await said("streams", "categories")


async def test_the_audit(store: PostgresEventStore, pool: asyncpg.Pool, database: str, tmp_path: Path) -> None:
    async def said(*arguments: str, code: int = 0) -> str:
        return await run(*arguments, dsn=database, folder=tmp_path, code=code, output=True)

    [event] = await store.append("Order-1", "Order", [placed()], 0)
    unsealed = PostgresEventStore(pool, hash_chain=False)
    await unsealed.append("Order-2", "Order", [placed()], 0)
    assert "1 events are not in the chain yet: `eventspine audit seal`" in await said("audit", "verify")
    assert "the chain reaches to position 2" in await said("audit", "seal")
    head = json.loads(await said("audit", "verify", "--json"))["head"]
    head = f"{head[0]}:{head[1]}"
    assert f"head {head}" in await said("audit", "verify", "--head", head)
    proof = tmp_path / "proof.json"
    proof.write_text(await said("audit", "prove", str(event.event_id)))
    assert "✓ Order-1@1" in await said("audit", "check", str(proof), "--head", head)
    proof.write_text(proof.read_text().replace("Order-1", "Order-9"))
    await said("audit", "check", str(proof), "--head", head, code=1)
    assert "give POSITION:DIGEST" in await run("audit", "verify", "--head", "x", dsn=database, folder=tmp_path, code=2)
    await pool.execute(
        "ALTER TABLE events DISABLE TRIGGER events_append_only; UPDATE events SET event_type = 'x' WHERE version = 1"
    )
    assert "✗ altered: the event at position 1" in await said("audit", "verify", "--head", head, code=1)


async def test_worker_groups(store: PostgresEventStore, database: str, tmp_path: Path) -> None:
    async def said(*arguments: str, code: int = 0) -> str:
        return await run("groups", *arguments, dsn=database, folder=tmp_path, code=code)

    await store.append("Order-1", "Order", [placed(), placed()], 0)
    broken = True

    async def handle(event: Event) -> None:
        if broken:
            raise ValueError("out of paper")

    workers = WorkerGroup(store, "mails", "Order", handle, buckets=2, max_tries=1, poll_s=0.05)
    working = asyncio.create_task(workers.run())

    async def parked() -> list[dict[str, Any]]:
        text = await said("parked", "mails", "--json")
        rows: list[dict[str, Any]] = json.loads(text)
        return rows

    rows = await wait_for(parked, lambda rows: len(rows) == 2)
    assert [row["reason"] for row in rows] == ["ValueError: out of paper", "waits behind a parked event of its stream"]
    [group] = json.loads(await said("list", "--json"))
    assert (group["group_id"], group["category"], group["parked"], group["workers"]) == ("mails", "Order", 2, 1)
    assert "".join((await said("parked", "mails")).split()).count("Order-1") == 2  # folded, not cut, where the screen is narrow
    assert "gave up the event at position 1" in await said("discard", "mails", "Order-1")
    broken = False
    assert "1 streams will be tried again" in await said("retry", "mails")
    await wait_for(parked, lambda rows: not rows)
    workers.stop()
    await working
    assert workers.events == 1
    assert "nothing is parked" in await said("retry", "mails", code=1)
    assert "nothing is parked" in await said("discard", "mails", "Order-1", code=1)


async def test_rights_of_an_application(database: str, pool: asyncpg.Pool, tmp_path: Path) -> None:
    role = database.rpartition("/")[2] + "_app"
    assert "make it first" in await run("grant", role, dsn=database, folder=tmp_path, code=2)
    await pool.execute(f"CREATE ROLE {role}")
    try:
        assert await run("grant", role, dsn=database, folder=tmp_path) == f"{role} can append and read\n"
        assert await pool.fetchval("SELECT has_table_privilege($1, 'events', 'INSERT')", role)
        assert not await pool.fetchval("SELECT has_table_privilege($1, 'events', 'UPDATE, DELETE, TRUNCATE')", role)
    finally:
        await pool.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


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
    """A handler that can't take an event ends the consumer, if it is to halt; nothing of the batch is written or skipped."""
    (tmp_path / "broken.py").write_text(
        "from eventspine import Projection, Table, on\n"
        "class Broken(Projection):\n"
        "    poison = 'halt'\n"
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
