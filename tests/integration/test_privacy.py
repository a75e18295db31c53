"""Personal data: encrypted wherever it is stored, readable to who has the keys, and gone when a person was erased."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from eventspine import (
    ANY,
    Consumer,
    Event,
    EventspineError,
    EventType,
    InvalidEvent,
    PostgresEventStore,
    PostgresSink,
    Projection,
    Query,
    QueryItem,
    Relay,
    SettingsError,
    StreamAppend,
    Table,
    TableWriter,
    on,
)
from eventspine.relay.search import search_topics
from eventspine.schemas.pins import load_pinned_types
from eventspine.schemas.privacy import ERASED, KeyRing
from eventspine.store.postgres import grant_application
from eventspine.store.postgres.audit import verify_log
from eventspine.store.postgres.erase import (
    delete_snapshots,
    erase_subject,
    events_of_subject,
    readable_in_database,
    readable_in_store,
    spellings,
    unsealed_fields,
)
from tests.integration.test_cli import run
from tests.oracle import check_log
from tests.waiting import wait_for

REGISTERED = EventType.from_schema(
    {
        "type": "record",
        "name": "CustomerRegistered",
        "subject": "customer_id",
        "fields": [
            {"name": "customer_id", "type": "string"},
            {"name": "email", "type": "string", "personal": True},
            {"name": "phone", "type": ["null", "string"], "default": None, "personal": True},
            {"name": "plan", "type": "string"},
        ],
    }
)
ANNA, BERT = "anna.müller@example.org", "bert@example.org"


class Customers(Projection):
    """Readable values in a read model, forgotten with the person."""

    categories = ("Customer", "PersonalData")
    table = Table("customers", columns={"customer_id": "text", "email": "text", "plan": "text"}, key="customer_id")

    @on("CustomerRegistered")
    def registered(self, event: Event, customers: TableWriter) -> None:
        customers.upsert(customer_id=event.data["customer_id"], email=event.data["email"], plan=event.data["plan"])

    @on("SubjectErased")
    def erased(self, event: Event, customers: TableWriter) -> None:
        customers.upsert(customer_id=event.data["subject"], email=ERASED)


def registered(customer_id: str = "c1", email: str = ANNA, phone: str | None = None) -> Event:
    data = {"customer_id": customer_id, "email": email, "phone": phone, "plan": "basic"}
    return Event(event_type="CustomerRegistered", data=data)


@pytest.fixture
async def customers(pool: asyncpg.Pool) -> PostgresEventStore:
    store = PostgresEventStore(pool)
    await store.register([REGISTERED])
    return store


@pytest.fixture
async def elsewhere(database: str) -> AsyncIterator[PostgresEventStore]:
    """The same log from another process, with keys of its own memory."""
    async with asyncpg.create_pool(database, min_size=1, max_size=3) as pool:
        yield PostgresEventStore(pool)


def personal(events: list[Event]) -> list[tuple[Any, Any]]:
    return [(event.data["email"], event.data["phone"]) for event in events]


async def test_stored_encrypted_and_read_as_given(
    customers: PostgresEventStore, elsewhere: PostgresEventStore, pool: asyncpg.Pool
) -> None:
    copies = await customers.append("Customer-1", "Customer", [registered(phone="+49 30 1234")], 0)
    both = await customers.append_streams(
        [
            StreamAppend("Customer-2", "Customer", [registered("c2", BERT)], 0),
            StreamAppend("Customer-3", "Customer", [registered()], 0),
        ]
    )
    await customers.import_events(
        "more", [Event(event_type="CustomerRegistered", data=registered().data, stream_id="Customer-4")]
    )
    expected = [(ANNA, "+49 30 1234"), (BERT, None), (ANNA, None), (ANNA, None)]
    assert personal(copies) + personal(both[0]) + personal(both[1]) == expected[:3]
    for store in (customers, elsewhere):
        assert personal(await store.read_all()) == expected
        assert personal(await store.read_stream("Customer-1")) == expected[:1]
        assert personal(await store.read(Query(QueryItem(categories=["Customer"])), backwards=True, limit=1)) == expected[3:]
        assert await store.read_event(copies[0].event_id) == copies[0]
        subscription = store.subscribe()
        assert personal([await anext(subscription) for _ in range(4)]) == expected
        await subscription.aclose()
    assert await readable_in_store(pool, spellings([ANNA, BERT, "+49 30 1234"])) == []
    assert await unsealed_fields(pool, "c1") == []
    [row, *_] = await pool.fetch("SELECT event_data ->> 'email' AS email, event_data ->> 'plan' AS plan FROM events")
    assert row["email"].startswith("enc:1:")
    assert row["plan"] == "basic"


async def test_a_retry_is_recognised(customers: PostgresEventStore, elsewhere: PostgresEventStore, pool: asyncpg.Pool) -> None:
    event = registered()
    first = await customers.append("Customer-1", "Customer", [event], 0)
    assert await customers.append("Customer-1", "Customer", [event], 0) == first
    assert await elsewhere.append("Customer-1", "Customer", [event], 0) == first
    async with pool.acquire() as connection, connection.transaction():
        assert await customers.append("Customer-1", "Customer", [event], 0, connection=connection) == first
    assert await check_log(pool) == 1


async def test_processes_that_meet_a_person_at_once_use_one_key(
    customers: PostgresEventStore, elsewhere: PostgresEventStore, pool: asyncpg.Pool
) -> None:
    stores = [customers, elsewhere]
    await asyncio.gather(*(stores[n % 2].append(f"Customer-{n}", "Customer", [registered(f"c{n % 5}")], 0) for n in range(40)))
    assert personal(await elsewhere.read_all()) == [(ANNA, None)] * 40
    assert await pool.fetchval("SELECT count(*) FROM subject_keys") == 5


async def test_a_key_is_part_of_the_callers_transaction(customers: PostgresEventStore, database: str) -> None:
    """It is there if the event is; a key of a transaction that rolled back encrypts nothing later."""
    async with asyncpg.create_pool(database, min_size=1, max_size=1) as own, asyncio.timeout(20):
        store = PostgresEventStore(own)
        async with own.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            [copy] = await store.append("Customer-1", "Customer", [registered()], 0, connection=connection)
            assert copy.data["email"] == ANNA
            await transaction.rollback()
        assert await own.fetchval("SELECT count(*) FROM subject_keys") == 0
        [recorded] = await store.append("Customer-1", "Customer", [registered()], 0)
        async with own.acquire() as connection, connection.transaction():
            await store.append("Customer-2", "Customer", [registered("c2")], 0, connection=connection)
    assert personal(await customers.read_all()) == [(ANNA, None), (ANNA, None)]
    assert (await customers.read_all())[0] == recorded


@pytest.mark.parametrize("data", [{"customer_id": "", "email": ANNA, "plan": "x"}, {"email": ANNA, "plan": "x"}])
async def test_data_of_nobody_is_refused(customers: PostgresEventStore, data: dict[str, Any]) -> None:
    with pytest.raises(InvalidEvent, match="belong to whom data\\['customer_id'\\] names"):
        await customers.append("Customer-1", "Customer", [Event(event_type="CustomerRegistered", data=data)], 0)


async def test_personal_values_of_other_types_are_refused(customers: PostgresEventStore) -> None:
    with pytest.raises(InvalidEvent, match="email"):
        await customers.append("Customer-1", "Customer", [registered(email=5)], 0)  # type: ignore[arg-type]


async def test_an_erased_person_is_gone(customers: PostgresEventStore, elsewhere: PostgresEventStore, pool: asyncpg.Pool) -> None:
    await customers.append("Customer-1", "Customer", [registered(phone="+49 30 1234"), registered()], 0)
    [bert] = await customers.append("Customer-2", "Customer", [registered("c2", BERT)], 0)
    await customers.save_snapshot("Customer-1", "Customer", {"email": ANNA}, version=2)
    await customers.save_snapshot("Customer-2", "Customer", {"email": BERT}, version=1)
    head = (await verify_log(pool)).head
    assert [event.version for event in await events_of_subject(customers, "c1")] == [1, 2]

    erasure = await erase_subject(customers, "c1")
    assert tuple(erasure) == (2, ["Customer-1"], ["+49 30 1234", ANNA], 1)
    for store in (customers, elsewhere):
        assert personal(await store.read_stream("Customer-1")) == [(ERASED, None), (ERASED, None)]
        assert await store.read_stream("Customer-2") == [bert]  # others stay
    assert (await customers.read_stream("Customer-1"))[0].data["plan"] == "basic"
    assert await customers.load_snapshot("Customer-2") is not None
    assert erasure.values is not None
    assert await readable_in_store(pool, spellings(erasure.values)) == []
    report = await verify_log(pool, head=head)  # the events are untouched
    assert report.findings == []
    assert await check_log(pool) == 4

    last = (await customers.read_all())[-1]
    assert (last.event_type, last.data) == ("SubjectErased", {"subject": "c1"})
    with pytest.raises(InvalidEvent, match="was erased; a new person gets a new id"):
        await customers.append("Customer-1", "Customer", [registered()], ANY)
    again = await erase_subject(elsewhere, "c1")
    assert (again.events, again.values) == (2, None)
    assert await check_log(pool) == 4  # SubjectErased is recorded once


async def test_a_process_that_knows_the_key_forgets_it(customers: PostgresEventStore, pool: asyncpg.Pool) -> None:
    brief = PostgresEventStore(pool, keep_keys_s=0)
    long = PostgresEventStore(pool, keep_keys_s=1000)
    await customers.append("Customer-1", "Customer", [registered()], 0)
    assert personal(await brief.read_all()) == personal(await long.read_all()) == [(ANNA, None)]
    await erase_subject(customers, "c1")
    assert personal(await brief.read_stream("Customer-1")) == [(ERASED, None)]
    assert personal(await long.read_stream("Customer-1")) == [(ANNA, None)]  # from memory
    await long.save_snapshot("Customer-1", "Customer", {"email": ANNA}, version=1)
    assert [each.where for each in await readable_in_store(pool, [ANNA])] == ["snapshots"]
    assert await delete_snapshots(pool, ["Customer-1"]) == 1
    assert await readable_in_store(pool, [ANNA]) == []


async def test_nobody_can_be_erased_by_mistake(customers: PostgresEventStore) -> None:
    with pytest.raises(EventspineError, match="there is no personal data of 'c1'"):
        await erase_subject(customers, "c1")


async def test_an_application_can_not_erase(customers: PostgresEventStore, pool: asyncpg.Pool, database: str) -> None:

    await customers.append("Customer-1", "Customer", [registered()], 0)
    role = database.rpartition("/")[2] + "_app"
    async with pool.acquire() as connection:
        await connection.execute(f"CREATE ROLE {role}")
        await grant_application(connection, role)
    try:
        async with asyncpg.create_pool(database, min_size=1, max_size=2, server_settings={"role": role}) as limited:
            application = PostgresEventStore(limited)
            await application.append("Customer-2", "Customer", [registered("c2", BERT)], 0)
            assert personal(await application.read_all()) == [(ANNA, None), (BERT, None)]
            with pytest.raises(SettingsError, match="grant the right"):
                await erase_subject(application, "c1")
        assert personal(await PostgresEventStore(pool).read_stream("Customer-1")) == [(ANNA, None)]
    finally:
        await pool.execute(f"DROP OWNED BY {role}")
        await pool.execute(f"DROP ROLE {role}")


async def test_what_was_written_around_us_is_found(customers: PostgresEventStore, pool: asyncpg.Pool) -> None:
    await customers.append("Customer-1", "Customer", [registered()], 0)
    await pool.execute("ALTER TABLE events DISABLE TRIGGER events_append_only")
    await pool.execute("""UPDATE events SET event_data = event_data || '{"email": "anna.müller@example.org"}'""")
    assert [(each.where, each.rows) for each in await unsealed_fields(pool, "c1")] == [
        ("CustomerRegistered.email, unencrypted", 1)
    ]
    assert [each.where for each in await readable_in_store(pool, [ANNA])] == ["events of type CustomerRegistered"]


async def test_search_of_a_read_models_database(pool: asyncpg.Pool) -> None:
    await pool.execute("CREATE TABLE notes (id int, note text, more jsonb, raw bytea, labels text[])")
    await pool.execute("INSERT INTO notes VALUES (1, $1, '{}', '', '{}')", f"met {ANNA}")
    await pool.execute("INSERT INTO notes VALUES (2, '', $1, $2, $3)", '{"a": ["say \\"hi\\""]}', BERT.encode(), [BERT])
    found = await readable_in_database(pool, spellings([ANNA, BERT, 'say "hi"']))
    assert [each.where.partition("column ")[2] for each in found] == ["note", "more", "raw", "labels"]


async def test_topic_and_read_model(
    customers: PostgresEventStore, pool: asyncpg.Pool, database: str, kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Kafka gets what is stored; a consumer with the keys writes readable values, and forgets them with the person."""
    await customers.append("Customer-1", "Customer", [registered()], 0)
    await customers.append("Customer-2", "Customer", [registered("c2", BERT)], 0)
    relay = Relay(customers.log, kafka, topic_prefix=topic_prefix)
    consumer = Consumer(
        Customers(),
        PostgresSink(pool),
        kafka,
        load_event_types=lambda: load_pinned_types(pool),
        keys=KeyRing(pool, keep_s=0),
        topic_prefix=topic_prefix,
    )

    async def emails() -> dict[str, str]:
        if not await pool.fetchval("SELECT to_regclass('customers') IS NOT NULL"):
            return {}
        return {row["customer_id"]: row["email"] for row in await pool.fetch("SELECT customer_id, email FROM customers")}

    async def erase(subject: str, code: int) -> str:
        arguments = ("--kafka-bootstrap", kafka, "--topic-prefix", topic_prefix, "privacy", "erase", subject)
        return await run(*arguments, "--verify", "--wait-s", "0", dsn=database, folder=tmp_path, code=code, output=True)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(relay.run())
        tasks.create_task(consumer.run())
        try:
            await wait_for(emails, lambda seen: seen == {"c1": ANNA, "c2": BERT}, timeout_s=60)
            search = await asyncio.to_thread(search_topics, kafka, topic_prefix, [ANNA, "Customer-1"])
            assert search.found == {f"{topic_prefix}Customer": 1}  # the stream's name, not the value
            await erase_subject(customers, "c1")
            await wait_for(emails, lambda seen: seen == {"c1": ERASED, "c2": BERT}, timeout_s=60)
        finally:
            relay.stop()
            consumer.stop()
    said = await erase("c1", code=0)
    assert "nobody knows the values any more" in said

    # Bert's read model has nobody who takes SubjectErased: it is named, and the exit code says so.
    said = await erase("c2", code=1)
    assert "erased c2: the key is destroyed; 1 events in 1 streams" in said
    assert "✓ log and snapshots: none of 1 values in 4 events" in said
    assert "✗ other tables of the store's database: table public.customers, column email: 1 rows can still be read" in said
    assert "✓ topics: none of 1 values in" in said


async def test_the_command_line(customers: PostgresEventStore, database: str, tmp_path: Path) -> None:
    await customers.append("Customer-1", "Customer", [registered(phone="+1")], 0)
    assert ANNA in await run("privacy", "show", "c1", dsn=database, folder=tmp_path)
    assert "no personal data of 'c9'" in await run("privacy", "show", "c9", dsn=database, folder=tmp_path, code=1)
    assert "no personal data of 'c9'" in await run("privacy", "erase", "c9", dsn=database, folder=tmp_path, code=1)
    said = await run("privacy", "erase", "c1", "--verify", "--wait-s", "0", dsn=database, folder=tmp_path)
    assert "✓ events of this person: every personal field is encrypted" in said
    assert "1 values have fewer than 4 characters" in said
    assert "✓ log and snapshots: none of 1 values in 2 events" in said
    assert "topics: kafka_bootstrap is not set" in said
    assert ERASED in await run("privacy", "show", "c1", dsn=database, folder=tmp_path)
