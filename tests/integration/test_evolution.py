"""An event type in five schema versions, written by five programs: read in today's shape on every way out."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from dataclasses_avroschema import types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventspine import (
    Aggregate,
    Consumer,
    Event,
    EventType,
    PostgresEventStore,
    PostgresSink,
    Query,
    QueryItem,
    Relay,
    Repository,
    SchemaError,
    SnapshottedRepository,
    Upcaster,
    WorkerGroup,
    on,
    upcaster,
)
from eventspine.examples.accounts.account import Account, Balances
from eventspine.examples.accounts.events import EVENT_TYPES, UPCASTERS
from tests.event_types import record
from tests.waiting import wait_for

STREAM = "Account-1"
AS_WRITTEN: list[dict[str, Any]] = [
    {"amount": 0.29},
    {"amount": 1.15, "reference": "rent"},
    {"amount_cents": 57, "reference": None},
    {"amount_cents": 10**13 + 1, "reference": None, "channel": "TRANSFER"},
    {"amount": Decimal("0.10"), "currency": "EUR", "reference": None, "channel": "CASH_MACHINE"},
]
TODAY: list[dict[str, Any]] = [
    {"amount": Decimal("0.29"), "currency": "EUR", "reference": None, "channel": "COUNTER"},
    {"amount": Decimal("1.15"), "currency": "EUR", "reference": "rent", "channel": "COUNTER"},
    {"amount": Decimal("0.57"), "currency": "EUR", "reference": None, "channel": "COUNTER"},
    {"amount": Decimal("100000000000.01"), "currency": "EUR", "reference": None, "channel": "TRANSFER"},
    {"amount": Decimal("0.10"), "currency": "EUR", "reference": None, "channel": "CASH_MACHINE"},
]
BALANCE = Decimal("100000000002.12")


async def program(pool: asyncpg.Pool, version: int, *, upcasters: list[Upcaster] = UPCASTERS) -> PostgresEventStore:
    """Return the store as a program opens it that was written when `version` was the newest."""
    store = PostgresEventStore(pool)
    await store.register(EVENT_TYPES[:version], [each for each in upcasters if each.to_version <= version])
    return store


@pytest.fixture
async def history(pool: asyncpg.Pool) -> None:
    """Five events, each by the program of its time, which only knows its own version by name."""
    for version, data in enumerate(AS_WRITTEN, 1):
        store = await program(pool, version)
        event = Event(event_type="MoneyDeposited", data=data)
        [copy] = await store.append(STREAM, "Account", [event], version - 1)
        assert (copy.schema_version, copy.data) == (version, data)
        assert await store.append(STREAM, "Account", [event], version - 1) == [copy]


def shapes(events: list[Event]) -> list[dict[str, Any]]:
    assert {event.schema_version for event in events} == {5}
    return [dict(event.data) for event in events]


@pytest.mark.usefixtures("history")
async def test_every_read_of_the_store(pool: asyncpg.Pool) -> None:
    store = await program(pool, 5)
    assert shapes(await store.read_stream(STREAM)) == TODAY
    assert shapes(await store.read_stream(STREAM, backwards=True)) == TODAY[::-1]
    assert shapes([event async for event in store.iterate_stream(STREAM, batch_size=2)]) == TODAY
    assert shapes(await store.read_all()) == TODAY
    assert shapes(await store.read(Query(QueryItem(event_types=("MoneyDeposited",))))) == TODAY
    first = (await store.read_all(0, 1))[0]
    assert await store.read_event(first.event_id) == first
    for query in (None, Query(QueryItem(categories=("Account",)))):
        subscription = store.subscribe(query=query, batch_size=2)
        assert shapes([await anext(subscription) for _ in range(5)]) == TODAY
        await subscription.aclose()
    handled: list[Event] = []

    async def handle(event: Event) -> None:
        handled.append(event)

    workers = WorkerGroup(store, "group", "Account", handle)
    running = asyncio.create_task(workers.run())
    await wait_for(lambda: len(handled), lambda count: count == 5)
    workers.stop()
    await running
    assert shapes(handled) == TODAY


@pytest.mark.usefixtures("history")
async def test_aggregates_with_and_without_snapshots(pool: asyncpg.Pool) -> None:
    store = await program(pool, 5)
    account = await Repository(store, Account).load("1")
    assert (account.balance, account.deposits) == (BALANCE, 5)
    snapshotted = SnapshottedRepository(store, Account, every=2)
    account = await snapshotted.execute("1", lambda account: account.deposit(Decimal("1.00")))
    snapshot = await store.load_snapshot(STREAM)
    assert snapshot is not None
    assert snapshot.version == 6
    account = await snapshotted.load("1")
    assert (account.balance, account.deposits, account.version) == (BALANCE + 1, 6, 6)


@pytest.mark.usefixtures("history")
async def test_projections_from_kafka(pool: asyncpg.Pool, kafka: str, topic_prefix: str) -> None:
    store = await program(pool, 5)
    relay = Relay(store.log, kafka, topic_prefix=topic_prefix)
    consumer = Consumer(
        Balances(),
        PostgresSink(pool),
        kafka,
        load_event_types=store.log.pinned_types,
        event_types=EVENT_TYPES,
        upcasters=UPCASTERS,
        topic_prefix=topic_prefix,
    )
    running = [asyncio.create_task(relay.run()), asyncio.create_task(consumer.run())]
    await wait_for(lambda: sum(place.events for place in consumer.places.values()), lambda count: count == 5, timeout_s=30)
    relay.stop()
    consumer.stop()
    await asyncio.gather(*running)
    assert [tuple(row) for row in await pool.fetch("SELECT * FROM account_balances")] == [(STREAM, BALANCE, 5)]


@pytest.mark.usefixtures("history")
async def test_old_programs_read_on_where_there_is_a_way_back(pool: asyncpg.Pool) -> None:
    """The program of version 4 has the steps up to 5 with the way back; the one of version 2 has none."""
    old = PostgresEventStore(pool)
    await old.register(EVENT_TYPES[:4], UPCASTERS)
    events = await old.read_stream(STREAM)
    assert {event.schema_version for event in events} == {4}
    assert [event.data["amount_cents"] for event in events] == [29, 115, 57, 10**13 + 1, 10]
    [copy] = await old.append(
        STREAM, "Account", [Event(event_type="MoneyDeposited", data={"amount_cents": 1, "reference": None})], 5
    )
    assert (copy.schema_version, copy.data["channel"]) == (4, "COUNTER")
    older = await program(pool, 2)
    assert len(await older.read_stream(STREAM, to_version=2)) == 2
    with pytest.raises(
        SchemaError, match=r"MoneyDeposited version 3 can't be read as version 2.*this program declares version 2"
    ):
        await older.read_stream(STREAM)


@pytest.mark.usefixtures("history")
async def test_what_is_written_stays_as_it_was_written(pool: asyncpg.Pool) -> None:
    store = PostgresEventStore(pool, as_written=True)
    events = await store.read_stream(STREAM)
    assert [(event.schema_version, event.data) for event in events] == list(enumerate(AS_WRITTEN, 1))
    money = await pool.fetchval("SELECT event_data ->> 'amount' FROM events WHERE schema_version = 5")
    assert money == "0.10"
    assert await pool.fetchval("SELECT jsonb_typeof(event_data -> 'amount') FROM events WHERE schema_version = 5") == "string"


@pytest.mark.usefixtures("history")
async def test_a_hole_is_refused_when_the_store_is_opened(pool: asyncpg.Pool) -> None:
    with pytest.raises(SchemaError, match=r"MoneyDeposited version 2 can't be read as version 3.*@upcaster\('MoneyDeposited'"):
        await program(pool, 5, upcasters=UPCASTERS[1:])


async def test_a_version_that_breaks_readers_is_not_registered(pool: asyncpg.Pool) -> None:
    store = await program(pool, 2)
    with pytest.raises(SchemaError, match=r'MoneyDeposited version 3 does not go with version 2 .*"amount":0\.0.*@upcaster'):
        await PostgresEventStore(pool).register(EVENT_TYPES[:3])
    assert [pin.event_type.schema_version for pin in await store.log.pinned_types()] == [1, 2]


async def test_an_import_is_written_in_todays_version(pool: asyncpg.Pool) -> None:
    await program(pool, 5)
    store = await program(pool, 4)
    [data] = AS_WRITTEN[3:4]
    await store.import_events("old bank", [Event(event_type="MoneyDeposited", data=data, stream_id=STREAM)])
    assert await pool.fetchval("SELECT schema_version FROM events") == 4


async def test_personal_fields_are_readable_to_upcasters(pool: asyncpg.Pool) -> None:
    fields = [{"name": "customer_id", "type": "string"}, {"name": "name", "type": "string", "personal": True}]
    first = EventType.from_schema({"type": "record", "name": "Named", "subject": "customer_id", "fields": fields})
    more = [fields[0], *({"name": name, "type": "string", "personal": True} for name in ("given", "family"))]
    second = EventType.from_schema(
        {"type": "record", "name": "Named", "subject": "customer_id", "fields": more}, schema_version=2
    )

    @upcaster("Named", from_version=1)
    def split(data: dict[str, Any]) -> dict[str, Any]:
        given, _, family = data["name"].partition(" ")
        return {"customer_id": data["customer_id"], "given": given, "family": family}

    old = PostgresEventStore(pool)
    await old.register([first])
    await old.append("Customer-1", "Customer", [Event(event_type="Named", data={"customer_id": "c", "name": "Ada L"})], 0)
    new = PostgresEventStore(pool)
    await new.register([first, second], [split])
    [event] = await new.read_stream("Customer-1")
    assert event.data == {"customer_id": "c", "given": "Ada", "family": "L"}


# Typed in, typed out


class Level(Enum):
    LOW = "LOW"
    HIGH = "HIGH"


@dataclass
class Line:
    sku: str
    price: types.condecimal(max_digits=12, decimal_places=2)  # type: ignore[valid-type]
    quantity: int = 1


@dataclass
class BasketPaid:
    basket_id: UUID
    total: types.condecimal(max_digits=12, decimal_places=2)  # type: ignore[valid-type]
    at: types.DateTimeMicro
    day: date
    level: Level
    first: Line
    lines: list[Line]
    by_name: dict[str, int] = field(default_factory=dict)
    note: str | None = None
    raw: bytes = b"x"


money = st.decimals(-(10**9), 10**9, places=2)
lines = st.builds(Line, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), money, st.integers(0, 9))
baskets = st.builds(
    BasketPaid,
    st.uuids(),
    money,
    st.datetimes(timezones=st.just(UTC)),
    st.dates(),
    st.sampled_from(Level),
    lines,
    st.lists(lines, max_size=2),
    st.dictionaries(st.text("äbc"), st.integers(-(2**63), 2**63 - 1), max_size=2),
    st.none() | st.text("xyß"),
    st.binary(max_size=4),
)


async def test_dataclasses_go_in_and_come_out(pool: asyncpg.Pool) -> None:
    store = PostgresEventStore(pool)
    await store.register([EventType.from_dataclass(BasketPaid)])
    loop = asyncio.get_running_loop()

    async def round_trip(basket: BasketPaid) -> None:
        stream = f"Basket-{uuid4()}"
        [copy] = await store.append(stream, "Basket", [Event.of(basket, metadata={"user_id": "u"})], 0)
        [read] = await store.read_stream(stream)
        assert read == copy
        assert read.data_as(BasketPaid) == basket
        row = await pool.fetchrow("SELECT event_data ->> 'total' AS total, event_data FROM events WHERE stream_id = $1", stream)
        assert row is not None
        assert Decimal(row["total"]) == basket.total
        assert msgspec.json.decode(row["event_data"])["lines"] == [
            {"sku": line.sku, "price": f"{line.price:.2f}", "quantity": line.quantity} for line in basket.lines
        ]

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(baskets)
    def check(basket: BasketPaid) -> None:
        asyncio.run_coroutine_threadsafe(round_trip(basket), loop).result(30)

    await asyncio.to_thread(check)


async def test_pydantic_models_go_in_and_come_out(pool: asyncpg.Pool) -> None:
    pydantic = pytest.importorskip("pydantic")
    critic: Any = pydantic.create_model("Critic", id=(UUID, ...), name=(str, "nobody"))
    fields: Any = {"stars": (int, ...), "at": (datetime, ...), "by": (list[critic], ...), "note": (str | None, None)}
    model: Any = pydantic.create_model("Rated", **fields)
    store = PostgresEventStore(pool)
    await store.register([EventType.from_pydantic(model)])
    critics = [critic(id=UUID(int=3)), critic(id=UUID(int=4), name="Ada")]
    rated = model(stars=5, at=datetime(2026, 1, 2, 3, 4, 5, 6000, UTC), by=critics)
    await store.append("Film-1", "Film", [Event.of(rated)], 0)
    [read] = await store.read_stream("Film-1")
    assert read.data_as(model) == rated


async def test_aggregates_record_instances(pool: asyncpg.Pool) -> None:
    @dataclass
    class StarGiven:
        stars: int

    class Film(Aggregate):
        stars: int = 0

        @on(StarGiven)
        def _given(self, event: Event) -> None:
            self.stars += event.data_as(StarGiven).stars

    store = PostgresEventStore(pool)
    await store.register([EventType.from_schema(record("StarGiven", ("stars", "long")))])
    films = Repository(store, Film)
    await films.execute("1", lambda film: void(film.record(StarGiven(3))))
    assert (await films.load("1")).stars == 3


def void(_: object) -> None:
    """Make a command of an expression."""
