"""The outbox: messages and rows together or not at all, on Kafka once and in order, and trimmed without harm."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from confluent_kafka.admin import AdminClient

from eventspine import (
    EventspineError,
    EventType,
    Fenced,
    IntegrityError,
    InvalidEvent,
    Message,
    OutboxRelay,
    PostgresEventStore,
    PostgresOutbox,
    Unavailable,
)
from eventspine.connect import open_pool
from eventspine.relay.relay import relay_id
from eventspine.relay.reshard import reshard
from eventspine.relay.state import RelayState
from eventspine.relay.topics import Topics, TopicSettings, ensure_topic
from eventspine.schemas.codec import Codec
from eventspine.schemas.pins import load_pinned_types
from eventspine.store.postgres import grant_application
from eventspine.store.postgres.outbox import RESERVED_HEADERS, TRIMMED
from tests.fault.proxy import END_TXN, PRODUCE, Trap, kafka_proxy
from tests.integration.test_pages import BLOCK, DOCS
from tests.oracle import read_committed
from tests.waiting import wait_for

Sent = dict[int, Message]
NAME = "relay.outbox"


@pytest.fixture
def outbox(pool: asyncpg.Pool) -> PostgresOutbox:
    """An outbox whose tables are full with 20 messages."""
    return PostgresOutbox(pool, slot_messages=20)


@pytest.fixture
def topic(topic_prefix: str) -> str:
    return f"commands-{topic_prefix}a"


async def send(outbox: PostgresOutbox, topic: str, count: int, sent: Sent, *, keys: int = 7) -> None:
    """Send messages one by one, and note at which positions they are."""
    for _ in range(count):
        number = len(sent) + 1
        message = Message(topic=topic, key=f"k{number % keys}", value=b"value %d" % number, headers={"number": str(number)})
        [position] = await outbox.send([message])
        sent[position] = message


@asynccontextmanager
async def running(
    outbox: PostgresOutbox, kafka: str, topic_prefix: str, *, trim_every_s: float = 3600.0, **options: Any
) -> AsyncIterator[OutboxRelay]:
    """Run the outbox's relay while the block runs."""
    relay = OutboxRelay(
        outbox, kafka, topic_prefix=topic_prefix, batch_events=20, lease_s=1.0, trim_every_s=trim_every_s, **options
    )
    task = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        relay.stop()
        await task


async def published(relay: OutboxRelay, position: int) -> None:
    await wait_for(lambda: (relay.state, relay.position), lambda seen: seen[1] >= position, timeout_s=30)


async def check(kafka: str, topics: Sequence[str], sent: Sent, *, late: Sequence[int] = ()) -> None:
    """Check that the topics hold what was sent: each message once, as it was, each partition in the order of positions."""
    found: dict[int, Message] = {}
    for topic in topics:
        last: dict[int, int] = defaultdict(int)
        for record in await asyncio.to_thread(read_committed, kafka, topic):
            headers = {name: value.decode() for name, value in record.headers()}
            position, message = int(headers["message_position"]), sent[int(headers["message_position"])]
            assert position not in found, f"position {position} is there twice"
            assert (position in late) == ("ce_publishedafter" in headers)
            if position not in late:
                assert position > last[record.partition()]
                last[record.partition()] = position
            assert (record.topic(), record.key().decode(), record.value()) == (message.topic, message.key, message.value)
            assert {name: headers[name] for name in headers.keys() - RESERVED_HEADERS} == message.headers
            assert headers["message_id"] == str(message.message_id)
            found[position] = message
    assert found.keys() == sent.keys(), f"not on Kafka: {sorted(sent.keys() - found.keys())[:10]}"


async def held(outbox: PostgresOutbox) -> list[tuple[int, int]]:
    """Return first and last position in each table that is not empty, in order."""
    return sorted((slot.first, slot.last) for slot in await outbox.slots())


async def test_messages_and_rows_commit_together(pool: asyncpg.Pool, outbox: PostgresOutbox) -> None:
    await pool.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    async with pool.acquire() as connection:
        for number, fails in ((1, False), (2, True), (3, False)):
            try:
                async with connection.transaction():
                    await connection.execute("INSERT INTO orders VALUES ($1)", number)
                    messages = [Message(topic="t", key=str(number), value=b"") for _ in range(2)]
                    assert len(await outbox.send(messages, connection=connection)) == 2
                    if fails:
                        raise RuntimeError
            except RuntimeError:
                pass
        with pytest.raises(EventspineError, match="no open transaction"):
            await outbox.send([Message(topic="t", value=b"")], connection=connection)
        with pytest.raises(EventspineError, match="needs READ COMMITTED, not REPEATABLE READ"):
            async with connection.transaction(isolation="repeatable_read"):
                await outbox.send([Message(topic="t", value=b"")], connection=connection)
        with pytest.raises(InvalidEvent, match="is the limit"):
            await outbox.send([Message(topic="t", value=b""), Message(topic="t", value=b"x" * 1_000_001)])
        assert await outbox.send([]) == []
    assert [row["id"] for row in await pool.fetch("SELECT id FROM orders ORDER BY id")] == [1, 3]
    rows = await pool.fetch("SELECT position, key FROM outbox ORDER BY position")
    assert [tuple(row) for row in rows] == [(1, "1"), (2, "1"), (3, "3"), (4, "3")]


async def test_a_transaction_that_falls_silent_is_ended(pool: asyncpg.Pool, outbox: PostgresOutbox) -> None:
    async with pool.acquire() as connection, connection.transaction():
        await outbox.send([Message(topic="t", value=b"")], connection=connection)
        assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "10s"
    async with pool.acquire() as silent, silent.transaction():
        await outbox.send([Message(topic="t", value=b"")], connection=silent)
        async with pool.acquire() as connection:
            waiting = connection.transaction()
            await waiting.start()
            await connection.execute("SET LOCAL lock_timeout = '50ms'")
            with pytest.raises(Unavailable, match="lock timeout"):
                await outbox.send([Message(topic="t", value=b"")], connection=connection)
            await waiting.rollback()
    assert await outbox.last_position() == 2


async def test_positions_of_many_senders_are_dense_and_visible_in_order(pool: asyncpg.Pool, database: str) -> None:
    got: list[int] = []
    async with open_pool(database, max_connections=33) as own:
        outbox = PostgresOutbox(own, slot_messages=100)

        async def sender(number: int) -> None:
            for turn in range(10):
                messages = [Message(topic="t", key=f"{number}", value=b"%d" % n) for n in range(1 + turn % 3)]
                if turn % 5 == 4:
                    async with own.acquire() as connection:
                        given_up = connection.transaction()
                        await given_up.start()
                        await outbox.send(messages, connection=connection)
                        await given_up.rollback()
                else:
                    got.extend(await outbox.send(messages))

        async def reader() -> None:
            seen = 0
            while seen < 32 * 15:
                rows = await pool.fetch("SELECT position FROM outbox WHERE position > $1 ORDER BY position", seen)
                assert [row[0] for row in rows] == list(range(seen + 1, seen + 1 + len(rows)))
                seen += len(rows)

        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            tasks.create_task(reader())
            for number in range(32):
                tasks.create_task(sender(number))
    assert sorted(got) == list(range(1, len(got) + 1))
    spans = await held(outbox := PostgresOutbox(pool))
    assert len(spans) == 3
    assert [first for first, _ in spans] == [1, *(last + 1 for _, last in spans[:-1])]
    assert [position + 1 for position in [len(got)]] == await outbox.send([Message(topic="t", value=b"")])


async def test_published_once_and_in_order(
    pool: asyncpg.Pool, store: PostgresEventStore, kafka: str, topic_prefix: str, topic: str
) -> None:
    """Beside plain bytes also Avro; nothing is made on Kafka before the first message; another prefix publishes nothing again."""
    sent: Sent = {}
    async with running(store.outbox, kafka, topic_prefix) as relay:
        await wait_for(lambda: relay.state, lambda state: state == "idle")
        topics = await asyncio.to_thread(AdminClient({"bootstrap.servers": kafka}).list_topics, timeout=20)
        assert f"{topic_prefix}-cursors" not in topics.topics
        await send(store.outbox, topic, 50, sent)
        avro = await store.encode("OrderPlaced", {"customer_id": "c", "total_cents": 7})
        mixed = [Message(topic=f"{topic}-{n % 2}", key=f"k{n % 5}", value=avro) for n in range(20)]
        sent |= zip(await store.outbox.send(mixed), mixed, strict=True)
        await published(relay, len(sent))
        async with running(store.outbox, kafka, f"{topic_prefix}other.") as second:
            await send(store.outbox, topic, 10, sent)
            await wait_for(lambda: relay.position + second.position, lambda seen: seen >= len(sent))
            await wait_for(lambda: second.state, lambda state: state == "standby")
    await check(kafka, [topic, f"{topic}-0", f"{topic}-1"], sent)
    codec = Codec()
    codec.add(await load_pinned_types(pool))
    assert codec.decode(avro) == {"customer_id": "c", "total_cents": 7, "note": None}
    personal = {"name": "email", "type": "string", "personal": True}
    fields = [{"name": "id", "type": "string"}, personal]
    await store.register([EventType.from_schema({"type": "record", "name": "Joined", "subject": "id", "fields": fields})])
    with pytest.raises(InvalidEvent, match="personal fields"):
        await store.encode("Joined", {"id": "a", "email": "b"})


@pytest.fixture
def processes(database: str, topic_prefix: str, tmp_path: Path) -> Iterator[Any]:
    """Starts processes of the outbox's relay, and ends what is left."""
    started: list[subprocess.Popen[bytes]] = []

    def start(bootstrap: str) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, "-m", "tests.outbox_relay", database, bootstrap, topic_prefix]
        with (tmp_path / f"{len(started)}.log").open("wb") as output:
            started.append(subprocess.Popen(arguments, stdout=output, stderr=output, cwd=Path(__file__).parents[2]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait(30)


@pytest.mark.parametrize(
    ("api_key", "moment", "skip"),
    [(PRODUCE, "unanswered", 3), (END_TXN, "before", 2), (END_TXN, "unanswered", 2)],
    ids=["records are written", "before the commit arrives", "the commit is done, unacknowledged"],
)
async def test_relay_killed(
    processes: Any, outbox: PostgresOutbox, kafka: str, topic_prefix: str, topic: str, api_key: int, moment: Any, skip: int
) -> None:
    sent: Sent = {}
    await send(outbox, topic, 90, sent)  # five batches, over three tables
    async with kafka_proxy(kafka) as proxy:
        victim = processes(proxy.bootstrap)
        proxy.trap = trap = Trap(api_key, moment, victim.kill, skip)
        await wait_for(lambda: trap.sprung, timeout_s=30)
        assert await asyncio.to_thread(victim.wait, 30) == -9
    await send(outbox, topic, 30, sent)
    async with running(outbox, kafka, topic_prefix, trim_every_s=0.05) as relay:
        await published(relay, len(sent))
        await wait_for(lambda: held(outbox), lambda spans: len(spans) == 1)
    await check(kafka, [topic], sent)


async def test_what_the_broker_refuses_parks_its_key(
    pool: asyncpg.Pool, outbox: PostgresOutbox, kafka: str, topic_prefix: str, topic: str
) -> None:
    ensure_topic(kafka, topic, partitions=3, replication=-1, settings={"max.message.bytes": "2000"})
    sent: Sent = {}
    rows = RelayState(pool, relay_id(topic_prefix, NAME))
    await send(outbox, topic, 10, sent, keys=4)
    [poison] = await outbox.send([Message(topic=topic, key="k1", value=random.Random(1).randbytes(3000))])
    sent[poison] = Message(topic=topic, key="k1", value=b"")
    await send(outbox, topic, 40, sent, keys=4)
    behind = [position for position, message in sent.items() if message.key == "k1" and position > poison]
    async with running(outbox, kafka, topic_prefix, trim_every_s=0.05) as relay:
        await published(relay, len(sent))
        parked = await rows.parked()
        assert [each["global_position"] for each in parked] == [poison, *behind]
        assert {each["stream_id"] for each in parked} == {f"{topic}/k1"}
        assert "max.message.bytes" in parked[0]["reason"]
        assert await held(outbox) == [(1, 20), (21, 40), (41, 51)], "a table with a parked message stays"
        assert await rows.discard(f"{topic}/k1") == poison
        await rows.retry(f"{topic}/k1")
        await wait_for(rows.parked, lambda left: not left)
        await wait_for(lambda: held(outbox), lambda spans: spans == [(41, 51)])
    del sent[poison]
    await check(kafka, [topic], sent, late=behind)


async def test_positions_go_on_over_trims_crashes_and_restarts(
    pool: asyncpg.Pool, outbox: PostgresOutbox, kafka: str, topic_prefix: str, topic: str
) -> None:
    """A crash is a task that is cancelled at a random moment: in a batch, in a trim, between them."""
    sent: Sent = {}
    chance = random.Random(7)
    for _ in range(3):
        await send(outbox, topic, chance.randrange(1, 30), sent)
        relay = OutboxRelay(outbox, kafka, topic_prefix=topic_prefix, batch_events=7, lease_s=0.5, trim_every_s=0.01)
        task = asyncio.create_task(relay.run())
        await published(relay, min(sent) + chance.randrange(len(sent)))
        if chance.random() < 0.7:
            await send(outbox, topic, chance.randrange(30), sent)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with running(outbox, kafka, topic_prefix, trim_every_s=0.05) as relay:
        await published(relay, len(sent))
        spans = await wait_for(lambda: held(outbox), lambda spans: len(spans) == 1)
    assert sorted(sent) == list(range(1, len(sent) + 1))
    assert spans[0][0] > 1
    await check(kafka, [topic], sent)


async def test_a_trim_is_done_or_not_done_and_holds_nobody_up(
    pool: asyncpg.Pool, outbox: PostgresOutbox, kafka: str, topic_prefix: str, topic: str
) -> None:
    sent: Sent = {}
    await send(outbox, topic, 50, sent)
    async with running(outbox, kafka, topic_prefix) as relay:
        await published(relay, 50)
    full = [(1, 20), (21, 40), (41, 50)]
    assert await held(outbox) == full
    assert not await outbox.trim(1, 40, ""), "the cursor's message must stay"
    assert not await outbox.trim(2, 99, ""), "the last message must stay"
    await RelayState(pool, "x").park(0, [])
    async with pool.acquire() as reader, reader.transaction():
        await reader.fetchval("SELECT count(*) FROM outbox")  # as a dump does: it holds the tables until it ends
        with pytest.raises(Unavailable):
            await outbox.trim(0, 50, "")
        await send(outbox, topic, 1, sent)
    async with pool.acquire() as connection:
        died = connection.transaction()
        await died.start()
        assert await connection.fetchval("SELECT trim_outbox(0, 50, '')")
        await died.rollback()
    assert await held(outbox) == [*full[:2], (41, 51)]
    assert await outbox.trim(0, 50, "")
    assert await held(outbox) == [(21, 40), (41, 51)]
    assert not await outbox.trim(0, 50, "")
    await send(outbox, topic, 25, sent)
    async with running(outbox, kafka, topic_prefix) as relay:
        await published(relay, 76)
    await check(kafka, [topic], sent)


async def test_what_was_trimmed_is_told_from_what_never_was(outbox: PostgresOutbox, topic: str) -> None:
    sent: Sent = {}
    await send(outbox, topic, 50, sent)
    assert await outbox.trim(1, 45, "")
    assert await outbox.event_id_at(20) == str(sent[20].message_id)
    assert await outbox.event_id_at(21) == TRIMMED
    assert await outbox.event_id_at(51) is None
    there, following = await outbox.read_following(45, 3, 1000)
    assert there == str(sent[45].message_id)
    assert [each.global_position for each in following] == [46, 47, 48]
    assert await outbox.read_following(50, 3, 1000) == (str(sent[50].message_id), [])
    assert await outbox.read_following(60, 3, 1000) == (None, [])
    assert len((await outbox.read_following(0, 20, 1))[1]) == 1, "one message at least"
    for zombie in (20, 21, 39, 40):
        with pytest.raises(Fenced, match="trimmed"):
            await outbox.read_following(zombie, 3, 1000)
    assert await outbox.trim(0, 45, "")
    with pytest.raises(IntegrityError, match="cursor is not on this Kafka"):
        await outbox.read_following(0, 3, 1000)


async def test_an_outbox_that_was_restored_is_not_published_nor_trimmed(
    pool: asyncpg.Pool, outbox: PostgresOutbox, kafka: str, topic_prefix: str, topic: str
) -> None:
    sent: Sent = {}
    await send(outbox, topic, 50, sent)
    async with running(outbox, kafka, topic_prefix) as relay:
        await published(relay, 50)
    await pool.execute("DELETE FROM outbox WHERE position > 30")
    with pytest.raises(IntegrityError, match="the log ends before"):
        await asyncio.wait_for(OutboxRelay(outbox, kafka, topic_prefix=topic_prefix, lease_s=0.5, trim_every_s=0.01).run(), 20)
    await send(outbox, topic, 40, {})
    with pytest.raises(IntegrityError, match="the log holds event"):
        await asyncio.wait_for(OutboxRelay(outbox, kafka, topic_prefix=topic_prefix, lease_s=0.5, trim_every_s=0.01).run(), 20)
    assert (await held(outbox))[0] == (1, 20)


async def test_shards_change_and_tables_are_trimmed_all_the_same(
    pool: asyncpg.Pool, outbox: PostgresOutbox, kafka: str, topic_prefix: str, topic: str
) -> None:
    """The cursors that closed the shards before stay on Kafka, and their messages don't stay in the outbox."""
    sent: Sent = {}
    await send(outbox, topic, 30, sent)
    async with running(outbox, kafka, topic_prefix) as relay:
        await published(relay, 30)
    rows = RelayState(pool, relay_id(topic_prefix, NAME))
    topics = Topics(kafka, rows, TopicSettings())
    assert await reshard(kafka, rows, topics, prefix=topic_prefix, name=NAME, shards=2)
    for trim_every_s in (3600.0, 0.05, 0.05):
        await send(outbox, topic, 30, sent)
        async with running(outbox, kafka, topic_prefix, trim_every_s=trim_every_s) as relay:
            await published(relay, len(sent))
            if trim_every_s < 1:
                await wait_for(lambda: held(outbox), lambda spans: spans[0][0] > 40)
    assert await outbox.event_id_at(30) == TRIMMED
    async with running(outbox, kafka, topic_prefix) as relay:
        await send(outbox, topic, 10, sent)
        await published(relay, len(sent))
    await check(kafka, [topic], sent)


async def test_the_granted_roles(pool: asyncpg.Pool, outbox: PostgresOutbox, database: str) -> None:
    role = database.rpartition("/")[2] + "_app"
    await pool.execute(f"CREATE ROLE {role} LOGIN")
    try:
        async with pool.acquire() as connection:
            await grant_application(connection, role)
            async with connection.transaction():
                await connection.execute(f"SET LOCAL ROLE {role}")
                assert await outbox.send([Message(topic="t", value=b"")], connection=connection) == [1]
            for statement in ("DELETE FROM outbox", "UPDATE outbox SET topic = 'x'", "SELECT trim_outbox(0, 9, '')"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(f"SET ROLE {role}; {statement}")
            await connection.execute("RESET ROLE")
    finally:
        await pool.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_hot_statements_use_the_index(pool: asyncpg.Pool, outbox: PostgresOutbox) -> None:
    await outbox.send([Message(topic="t", value=b"") for _ in range(3000)])
    await pool.execute("ANALYZE outbox")
    for statement, arguments in (
        ("outbox_read_following", (2000, 2100, 1000)),
        ("outbox_read_stored_at", ([5, 7],)),
        ("outbox_event_id_at", (7,)),
        ("outbox_last_position", ()),
        ("outbox_slots", ()),
    ):
        text = (Path(__file__).parents[2] / "store" / "postgres" / "sql" / f"{statement}.sql").read_text()
        plan = "\n".join(row[0] for row in await pool.fetch(f"EXPLAIN {text}", *arguments))
        assert "outbox_0_pkey" in plan, plan
        assert "Seq Scan on outbox_0" not in plan, plan


async def test_the_page(pool: asyncpg.Pool, store: PostgresEventStore, capsys: pytest.CaptureFixture[str]) -> None:
    fields = [{"name": "order_id", "type": "string"}, {"name": "express", "type": "boolean"}]
    await store.register([EventType.from_schema({"type": "record", "name": "ShipOrder", "fields": fields})])
    await pool.execute("CREATE TABLE orders (id text, status text)")
    [block] = BLOCK.finditer((DOCS / "outbox.md").read_text(encoding="utf-8"))
    names: dict[str, Any] = {"store": store, "pool": pool}
    program = "async def page():\n" + "".join(f"    {line}\n" for line in block["code"].splitlines())
    exec(compile(program, "docs/outbox.md", "exec"), names)
    await names["page"]()
    assert capsys.readouterr().out.strip() == block["output"].strip()
