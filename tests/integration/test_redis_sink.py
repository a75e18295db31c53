"""Redis beside what all sinks do: its errors, its memory, what it can't do; and the whole way, by the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from eventspine import Event, Fenced, PostgresEventStore, Projection, ProjectionError, Sql, Table, TableWriter, Unavailable, on
from eventspine.consumers.redis_admin import RedisProjectionAdmin
from eventspine.consumers.redis_client import open_redis
from eventspine.consumers.redis_sink import RedisSink
from eventspine.consumers.sink import Work
from eventspine.read_model import open_sink
from eventspine.schemas import EventspineError, IntegrityError, SettingsError
from tests.contract.sinks import P0, Run, redis_rows
from tests.contract.test_sink import POISON, Things, change, thing
from tests.event_types import paid, placed
from tests.fault.proxy import Proxy
from tests.integration.test_relay_and_consumer import relaying
from tests.oracle import check_redis_read_model
from tests.processes import processes
from tests.redis_server import RedisService
from tests.waiting import wait_for


@pytest.fixture
async def client(redis_service: RedisService) -> AsyncIterator[Any]:
    async with open_redis(redis_service.endpoint) as client:
        found: Any = client
        await found.flushall()
        yield found


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisService]:
    server = RedisService(tmp_path / "redis")
    server.start()
    yield server
    server.kill()


async def run(client: Any, projection: Projection | None = None) -> Run:
    return await Run(projection or Things(), RedisSink(client)).start()


async def rows(client: Any) -> list[dict[str, Any]]:
    return await redis_rows(client, Things(), Things.things)


async def test_a_row_is_a_hash_that_people_can_read(client: Any) -> None:
    owner = await run(client)
    await owner.apply(change("upsert", id="a:b%", name="ä", n=5, x=0.5, about={"k": [1]}))
    found = await client.hgetall("{things}:things:a%3Ab%25:1")
    assert {name.decode(): text.decode() for name, text in found.items()} == {
        "id": "a:b%", "part": "1", "name": "ä", "n": "5", "x": "0.5", "about": '{"k":[1]}',
    }  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "key", "said"),
    [
        ({"id": "text", "at": "interval"}, "id", "at is interval, which has no form in Redis"),
        ({"id": "numeric"}, "id", "id is numeric"),
        ({"id": "double precision"}, "id", "can be in no key"),
        ({"id": "text(5)"}, "id", "no form"),
    ],
)
async def test_tables_that_redis_can_not_hold(client: Any, columns: dict[str, str], key: str, said: str) -> None:
    class Wrong(Projection):
        table = Table("wrong", columns=columns, key=key)

    with pytest.raises(ProjectionError, match=said):
        await RedisSink(client).prepare(Wrong())


async def test_sql_and_names_that_are_refused(client: Any) -> None:
    class WithSql(Projection):
        sql = Sql()

    class Migrated(Projection):
        migrations = ("ALTER TABLE things ADD COLUMN more text",)

    class Braces(Projection):
        name = "a}b"

    for projection in (WithSql(), Migrated(), Braces()):
        with pytest.raises(ProjectionError):
            await RedisSink(client).prepare(projection)


async def test_sums_of_numeric_are_refused_before_anything_is_sent(client: Any) -> None:
    class Sums(Projection):
        sums = Table("sums", columns={"id": "text", "euros": "numeric"}, key="id")

        @on("Changed")
        def changed(self, event: Event, sums: TableWriter) -> None:
            sums.increment(id="a", euros=1)

    owner = await run(client, Sums())
    with pytest.raises(ProjectionError, match="can't add to euros, which is numeric: count in integers"):
        await owner.apply(change(""))
    assert (await run(client, Sums())).place.next_offset == 0


async def test_scripts_that_the_server_forgot_are_sent_again(client: Any) -> None:
    owner = await run(client)
    await owner.apply(change("upsert", id="a"))
    await client.script_flush()
    await owner.apply(change("upsert", id="b"))
    assert await rows(client) == [thing("a"), thing("b")]


async def test_what_is_of_another_kind_stops_a_batch_before_it_is_written(client: Any) -> None:
    owner = await run(client)
    await client.set("{things}:things:b:1", "a text")
    with pytest.raises(EventspineError, match="WRONGTYPE"):
        await owner.apply(change("upsert", id="a"), change("upsert", id="b"))
    await client.delete("{things}:things:b:1")
    assert await rows(client) == []
    assert (await run(client)).place.next_offset == 0


async def test_a_settlement_that_is_sent_twice_is_done_once(client: Any) -> None:
    """Its offsets don't move, so what shows that it was done is that the event is parked no longer."""
    owner = await run(client)
    await owner.apply(POISON)
    place = {P0: owner.place}
    writer = Things.things.writer()
    writer.increment(id="x", part=1, n=1)
    folded = owner.engine._fold([], {})._replace(writes=writer.flush())
    work = Work(place, place, folded, lambda rows: folded, lambda folded: [], [(P0, 1)])
    await owner.sink.write(Things(), work)
    with pytest.raises(Fenced):
        await owner.sink.write(Things(), work)
    assert await rows(client) == [thing("x", n=1)]


async def test_an_owner_whose_epoch_was_given_twice_can_not_write(client: Any, redis_service: RedisService) -> None:
    """A fail-over takes back that an epoch was given; the next owner gets the same."""
    async with open_redis(redis_service.endpoint) as another:
        first = await run(client)
        before = await client.dump("{things}::places")
        zombie = await run(another)
        await client.restore("{things}::places", 0, before, replace=True)
        heir = await run(client)
        assert heir.place == zombie.place
        with pytest.raises(Fenced):
            await zombie.apply(change("upsert", id="zombie"))
        with pytest.raises(Fenced):
            await first.apply(change("upsert", id="zombie"))
        await heir.apply(change("upsert", id="a"))
        assert await rows(client) == [thing("a")]


async def test_a_server_that_lost_everything(client: Any) -> None:
    """Whoever runs it is fenced, and begins at the beginning of its topics."""
    owner = await run(client)
    await owner.apply(change("upsert", id="a"))
    await client.flushall()
    with pytest.raises(Fenced):
        await owner.apply(change("upsert", id="b"))
    with pytest.raises(Fenced):
        await owner.engine.look_at_parked()
    assert (await run(client)).place.next_offset == 0


async def test_a_reset_that_was_cut_off_is_ended_by_the_next_owner(client: Any) -> None:
    owner = await run(client)
    await owner.apply(*(change("upsert", id=f"{n}") for n in range(3)))
    admin = RedisProjectionAdmin(client)
    control = [f"{{things}}::{name}" for name in ("places", "parked", "records", "asked", "tables", "sweeping", "begun")]
    await admin._reset(control, ["token"])
    heir = await run(client)
    assert await rows(client) == []
    await heir.apply(change("upsert", id="new"))
    assert await client.exists("{things}::sweeping") == 0
    sweep = await client.eval((Path(__file__).parents[2] / "consumers/lua/sweep.lua").read_text(), 2,
                              "{things}::sweeping", "{things}:things:new:1", "token", "last")  # fmt: skip
    assert sweep == 0
    assert await rows(client) == [thing("new")]


async def test_full_memory_takes_all_of_a_batch_or_nothing(own_server: RedisService) -> None:
    async with open_redis(own_server.endpoint) as opened:
        client: Any = opened
        owner = await run(client)
        await owner.apply(change("upsert", id="a", name="x"), change("upsert", id="b"))
        await client.config_set("maxmemory", "1")
        with pytest.raises(Unavailable, match="can't do it now"):
            await owner.apply(change("delete", id="b"), change("upsert", id="a", name="y"), change("increment", id="a", n=2**60))
        await client.config_set("maxmemory", "0")
        assert await rows(client) == [thing("a", name="x"), thing("b")]
        assert (await run(client)).place.next_offset == 2


async def test_a_server_that_evicts_is_refused(own_server: RedisService) -> None:
    async with open_redis(own_server.endpoint) as opened:
        client: Any = opened
        await client.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(SettingsError, match="set it to noeviction"):
            await run(client)
        await client.config_set("maxmemory-policy", "volatile-lru")  # nothing of ours has a time to live
        await run(client)


async def test_a_batch_of_which_a_part_was_applied_is_found(own_server: RedisService) -> None:
    """A file that ends within a transaction: Redis keeps the whole commands, and runs them with the next transaction."""
    async with open_redis(own_server.endpoint) as client:
        owner = await run(client)
        await owner.apply(*(change("increment", id=each, n=1) for each in "abc"))
    own_server.kill()
    file = max(own_server.folder.rglob("*.aof"), key=lambda file: file.stat().st_size)
    content = file.read_bytes()
    file.write_bytes(content[: content.rindex(b"{things}:things:c")])  # within the last row's command
    own_server.start()
    async with open_redis(own_server.endpoint) as client:
        owner = await run(client)
        assert (owner.place.next_offset, await rows(client)) == (0, [])
        await owner.apply(change("increment", id="a", n=1))
    own_server.kill()
    own_server.start()
    async with open_redis(own_server.endpoint) as client:
        assert [row["id"] for row in await rows(client)] == ["a", "b"]  # so far, b was in no batch that was written
        with pytest.raises(IntegrityError, match="Redis applied a part of a batch"):
            await run(client)
        await RedisProjectionAdmin(client).reset(Things())
        owner = await run(client)
        await owner.apply(change("increment", id="a", n=1))
        assert [row["id"] for row in await rows(client)] == ["a"]


async def test_a_replica_and_logins(own_server: RedisService) -> None:
    async with open_redis(own_server.endpoint) as opened:
        client: Any = opened
        owner = await run(client)
        await client.config_set("masterauth", "none")
        await client.execute_command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(Unavailable):
            await owner.apply(change("upsert", id="a"))
        await client.execute_command("REPLICAOF", "NO", "ONE")
        await client.config_set("requirepass", "secret")
    with pytest.raises(SettingsError, match="refused the login"):
        async with open_sink(own_server.endpoint):
            pass
    with pytest.raises(SettingsError, match="refused the login"):
        async with open_sink(own_server.endpoint.replace("//", "//:wrong@")):
            pass
    async with open_sink(own_server.endpoint.replace("//", "//:secret@")) as sink:
        await sink.prepare(Things())


async def test_a_server_that_is_away() -> None:
    with pytest.raises(Unavailable, match="Redis is away"):
        async with open_sink("redis://127.0.0.1:1"):
            pass
    for dsn in ("redis://127.0.0.1:x", "redis://127.0.0.1/?socket_timeout=x"):
        with pytest.raises(SettingsError):
            async with open_sink(dsn):
                pass


async def test_a_write_whose_answer_is_lost(own_server: RedisService) -> None:
    """The line breaks while the server works: the consumer can't know, and its place tells."""
    proxy = Proxy(int(own_server.port or 0))
    async with (
        proxy.running(),
        open_redis(own_server.endpoint) as direct,
        open_redis(f"redis://127.0.0.1:{proxy.port}") as client,
    ):
        owner = await run(client)
        proxy.pause_s = 0.3
        writing = asyncio.create_task(owner.apply(change("increment", id="a", n=1)))
        await wait_for(lambda: rows(direct))
        proxy.cut()
        with pytest.raises(Unavailable, match="Redis is away"):
            await writing
        proxy.pause_s = 0
        heir = await run(client)
        assert heir.place.next_offset == 1
        assert await rows(direct) == [thing("a", n=1)]


async def append(store: PostgresEventStore, name: str, orders: int) -> None:
    for number in range(orders):
        await store.append(f"Order-{name}{number}", "Order", [placed(f"c{number % 3}", number), paid(number)], expected_version=0)


async def test_the_whole_way_by_commands(
    store: PostgresEventStore, pool: asyncpg.Pool, kafka: str, topic_prefix: str, database: str, tmp_path: Path,
    client: Any, redis_service: RedisService,
) -> None:  # fmt: skip
    """From the log, on from Kafka, paused, reset: the read model is a fold of the log."""
    async with processes(database, kafka, topic_prefix, tmp_path) as run_, relaying(store, kafka, topic_prefix):
        settings: dict[str, Any] = {"read_model_dsn": redis_service.endpoint}

        async def command(*arguments: str, code: int = 0) -> str:
            process = run_.command(["projections", *arguments], **settings)
            assert await process.ended(60) == code, process.said
            return process.said

        async def right() -> None:
            await wait_for(_seen(lambda: check_redis_read_model(pool, client)), lambda said: not said, timeout_s=40, every_s=0.1)

        await append(store, "a", 5)
        from_log = run_.command(["consume", "tests.projections:OrderTotals", "--source", "log"], **settings)
        await right()
        await from_log.stop()
        await append(store, "b", 5)
        consumer = run_.command(["consume", "tests.projections:OrderTotals"], **settings)
        await right()
        (summary,) = json.loads(await command("list", "--json"))
        assert (summary["projection"], summary["events"], summary["parked"]) == ("order_totals", 20, 0)
        await command("pause", "order_totals")
        await wait_for(lambda: "consumer pauses" in consumer.said, timeout_s=20)
        await append(store, "c", 2)
        await command("resume", "order_totals")
        await right()
        assert json.loads(await command("parked", "list", "order_totals", "--json")) == []
        assert "has no parked events" in await command("parked", "retry", "order_totals", code=2)
        await command("reset", "tests.projections:OrderTotals", "--yes")
        await right()
        status = json.loads(await command("status", "order_totals", "--json"))
        assert sum(each["events"] for each in status) == 24
        consumer.check_running()
        await consumer.stop()


def _seen(check: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[str]]:
    async def look() -> str:
        try:
            await check()
        except AssertionError as missing:
            return str(missing)
        return ""

    return look
