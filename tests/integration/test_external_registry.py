"""A registry of somebody's own gives the ids: ours over another database, and a real Apicurio."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient, topic_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from eventspine import Event, EventType, PostgresEventStore, SchemaError, SettingsError, Unavailable
from eventspine.local.service import free_port
from eventspine.schemas import schema_id_of
from eventspine.schemas.envelope import envelope_schema, pin_envelopes
from eventspine.schemas.pins import load_pinned_types, register_event_types, register_subjects
from eventspine.schemas.registry_client import RegistryClient
from eventspine.schemas.registry_sync import keep_registry, publish_subjects, push_to_registry, verify_registry
from eventspine.schemas.registry_users import Users, hash_password
from tests.apicurio import ApicurioService
from tests.conftest import dsn_of, on_server
from tests.event_types import ORDER_PAID, ORDER_PLACED, ORDER_SHIPPED, ORDER_SHIPPED_V2, placed, record
from tests.integration.test_cli import run
from tests.oracle import read_committed
from tests.processes import processes
from tests.registry import serving
from tests.waiting import wait_for

TYPES = [ORDER_PLACED, ORDER_SHIPPED, ORDER_SHIPPED_V2]
OTHER = json.dumps(record("Invoice", ("number", "string")))


@pytest.fixture
async def other_pool(postgres: str, migrated_template: str) -> AsyncIterator[asyncpg.Pool]:
    """The registry's database. It holds a schema already, so that its ids are not those that ours would give."""
    async with another_database(postgres, migrated_template) as pool, serving(pool) as url, RegistryClient(url) as registry:
        await registry.register("invoices-value", OTHER)
        yield pool


@asynccontextmanager
async def another_database(postgres: str, template: str) -> AsyncIterator[asyncpg.Pool]:
    name = f"registry_{uuid4().hex}"
    await on_server(postgres, f"CREATE DATABASE {name} TEMPLATE {template}")
    pool = await asyncpg.create_pool(dsn_of(postgres, name), min_size=1, max_size=5)
    try:
        yield pool
    finally:
        pool.terminate()
        await on_server(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@asynccontextmanager
async def registry_over(pool: asyncpg.Pool, *, port: int = 0) -> AsyncIterator[RegistryClient]:
    async with serving(pool, port=port) as url, RegistryClient(url) as registry:
        yield registry


@asynccontextmanager
async def keeping(pool: asyncpg.Pool, registry: RegistryClient, *, check_every_s: float) -> AsyncIterator[None]:
    keeper = asyncio.create_task(keep_registry(pool, registry, every_s=0.05, check_every_s=check_every_s))
    try:
        yield
    finally:
        keeper.cancel()
        assert isinstance((await asyncio.gather(keeper, return_exceptions=True))[0], asyncio.CancelledError)


def decoded(url: str, payload: bytes, topic: str = "events.Order") -> Any:
    """Read a record's value as Confluent's deserializer does, which asks the registry for the schema."""
    with SchemaRegistryClient({"url": url, "timeout": 10}) as client:
        options = {"subject.name.strategy": topic_subject_name_strategy}  # by itself it asks for associations, which not all know
        return AvroDeserializer(client, conf=options)(payload, SerializationContext(topic, MessageField.VALUE))


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.message for each in caplog.records if each.name == "eventspine.schemas.registry_sync"]


async def ask(method: str, registry: RegistryClient, path: str, body: Any = None) -> Any:
    async with httpx.AsyncClient() as client:
        return (await client.request(method, f"{registry.url}{path}", json=body)).json()


async def ids(pool: asyncpg.Pool) -> dict[tuple[str, int], int]:
    return {(pin.event_type.name, pin.event_type.schema_version): pin.schema_id for pin in await load_pinned_types(pool)}


async def test_new_types_get_the_registrys_ids(pool: asyncpg.Pool, other_pool: asyncpg.Pool) -> None:
    async with registry_over(other_pool) as registry:
        await PostgresEventStore(pool, registry=registry).register(TYPES)
        assert await ids(pool) == {("OrderPlaced", 1): 2, ("OrderShipped", 1): 3, ("OrderShipped", 2): 4}
        place = await registry.find("OrderShipped", ORDER_SHIPPED_V2.definition)
        assert place == (2, 4)
        store = PostgresEventStore(pool)
        await store.append("Order-1", "Order", [placed("é", 7)], 0)
        (stored,) = await store.log.read_stored(0, 1, 10**6)
        assert schema_id_of(stored.payload) == 2
        read = await asyncio.to_thread(decoded, registry.url, stored.payload)
        assert read == {"customer_id": "é", "total_cents": 7, "note": None}
        assert await verify_registry(pool, registry) == []
    # What is registered needs no registry; what is new does.
    await register_event_types(pool, TYPES, registry=registry)
    with pytest.raises(Unavailable, match="is away"):
        await register_event_types(pool, [ORDER_PAID], registry=registry)
    assert ("OrderPaid", 1) not in await ids(pool)


async def test_what_the_gate_refuses_does_not_reach_the_registry(pool: asyncpg.Pool, other_pool: asyncpg.Pool) -> None:
    changed = EventType.from_schema(record("OrderPlaced", ("customer_id", "long")), schema_version=2)
    async with registry_over(other_pool) as registry:
        await register_event_types(pool, [ORDER_PLACED], registry=registry)
        with pytest.raises(SchemaError, match="OrderPlaced version 2 does not go with version 1"):
            await register_event_types(pool, [changed], registry=registry)
        assert await registry.find("OrderPlaced", changed.definition) is None


async def test_what_the_registry_refuses_is_told_in_its_words(pool: asyncpg.Pool, other_pool: asyncpg.Pool) -> None:
    incompatible = json.dumps(record("OrderPaid", ("amount_cents", "string")))
    async with registry_over(other_pool) as registry:
        await registry.register("OrderPaid", incompatible)
        with pytest.raises(SchemaError, match=r"(?s)refuses the schema: Schema being registered is incompatible.*status 409"):
            await register_event_types(pool, [ORDER_PLACED, ORDER_PAID], registry=registry)
        assert await ids(pool) == {}
        await ask("PUT", registry, "/mode", {"mode": "READONLY"})
        with pytest.raises(SettingsError, match="is not in the mode for this"):
            await register_event_types(pool, [ORDER_SHIPPED], registry=registry)


async def test_an_id_that_is_taken_here_is_refused(pool: asyncpg.Pool, other_pool: asyncpg.Pool) -> None:
    await register_event_types(pool, [ORDER_PLACED, ORDER_PAID])  # without a registry: 1 and 2
    async with registry_over(other_pool) as registry:
        with pytest.raises(
            SchemaError, match=r"gives OrderShipped version 1 the id 2, which is the id of OrderPaid.*registry push"
        ):
            await register_event_types(pool, [ORDER_SHIPPED], registry=registry)
        assert ("OrderShipped", 1) not in await ids(pool)
        said = "\n".join(map(str, await verify_registry(pool, registry)))
        assert "the id 1 is OrderPlaced version 1 here, and another schema (Invoice) there" in said
        assert "the id 2 is OrderPaid version 1 here, and another schema (OrderShipped) there" in said
        pushed = await push_to_registry(pool, registry)  # leaves other schemas alone
        assert pushed.imported == []
        assert "\n".join(map(str, pushed.left)) == said


async def test_envelopes_get_the_registrys_ids(pool: asyncpg.Pool, other_pool: asyncpg.Pool) -> None:
    async with registry_over(other_pool) as registry:
        await register_event_types(pool, [ORDER_PLACED], registry=registry)
        await registry.register("invoices-key", '"string"')  # id 3: ours would give it as well
        envelopes = await pin_envelopes(pool, [2], registry=registry)
        assert envelopes[2] == (4, "OrderPlacedEnvelope")
        assert await verify_registry(pool, registry) == []
    assert await pin_envelopes(pool, [2], registry=registry) == envelopes


async def test_registration_on_the_command_line(
    database: str, pool: asyncpg.Pool, other_pool: asyncpg.Pool, tmp_path: Path
) -> None:
    (tmp_path / "OrderPlaced.avsc").write_text(ORDER_PLACED.definition)
    (tmp_path / "OrderPaid.avsc").write_text(ORDER_PAID.definition)
    async with registry_over(other_pool) as registry:
        (tmp_path / "eventspine.toml").write_text(f'registry_url = "{registry.url}"\nvalue_format = "envelope"\n')
        await run("schema", "register", "OrderPlaced.avsc", dsn=database, folder=tmp_path)
        assert await ids(pool) == {("OrderPlaced", 1): 2}
        assert (await registry.find("OrderPlacedEnvelope", json.dumps(envelope_schema(ORDER_PLACED.definition)))) == (1, 3)
    said = await run("schema", "register", "OrderPaid.avsc", dsn=database, folder=tmp_path, code=1)
    assert f"the registry at {registry.url} is away" in said


async def test_user_and_password(pool: asyncpg.Pool, other_pool: asyncpg.Pool, tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text(f"{hash_password('alice', 'p@ss:word')}\n{hash_password('bob', 'other', read_only=True)}\n")
    async with serving(other_pool, users=Users.from_file(file)) as url:
        async with RegistryClient(url, user="alice", password="p@ss:word") as registry:
            await register_event_types(pool, [ORDER_PLACED], registry=registry)
        async with RegistryClient(url.replace("://", "://alice:p%40ss%3Aword@")) as registry:
            assert "alice" not in registry.url
            assert await verify_registry(pool, registry) == []
        for user, password in [("alice", "wr0ng"), ("bob", "other")]:
            async with RegistryClient(url, user=user, password=password) as registry:
                with pytest.raises(SettingsError, match="refuses the user") as refused:
                    await register_event_types(pool, [ORDER_PAID], registry=registry)
                assert password not in str(refused.value)


async def test_appends_and_relay_go_on_without_the_registry(
    database: str,
    pool: asyncpg.Pool,
    other_pool: asyncpg.Pool,
    kafka: str,
    topic_prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = free_port()
    monkeypatch.setenv("EVENTSPINE_REGISTRY_URL", f"http://127.0.0.1:{port}")
    store = PostgresEventStore(pool)
    placed_subject, paid_subject = (f"{topic_prefix}Order-{name}" for name in ("OrderPlaced", "OrderPaid"))
    async with processes(database, kafka, topic_prefix, tmp_path) as started:
        async with registry_over(other_pool, port=port) as registry:
            await register_event_types(pool, [ORDER_PLACED, ORDER_PAID], registry=registry)
            await store.register([ORDER_PLACED, ORDER_PAID])
            relay = started.relay()
            await store.append("Order-1", "Order", [placed()], 0)
            await wait_for(lambda: registry.find(placed_subject, ORDER_PLACED.definition))

        await store.append("Order-1", "Order", [Event(event_type="OrderPaid", data={"amount_cents": 5})], 1)  # a new subject
        await wait_for(lambda: "can't be looked after now, appends and the relay go on" in relay.said)
        await store.append("Order-1", "Order", [placed("c2")], 2)
        records = await wait_for(lambda: read_committed(kafka, f"{topic_prefix}Order"), lambda found: len(found) == 3)
        with pytest.raises(Unavailable):
            await register_event_types(pool, [ORDER_SHIPPED], registry=registry)

        async with registry_over(other_pool, port=port) as registry:
            await wait_for(lambda: "is looked after again" in relay.said)
            assert await registry.find(paid_subject, ORDER_PAID.definition) == (1, 3)
            values = [await asyncio.to_thread(decoded, registry.url, record.value()) for record in records]
            assert values[1:] == [{"amount_cents": 5}, {"customer_id": "c2", "total_cents": 100, "note": None}]
            await relay.stop()
            assert await verify_registry(pool, registry) == []
        assert relay.said.count("can't be looked after now") == 1
        assert relay.said.count("looked after again") == 1


async def test_a_rebuilt_registry_is_noticed_and_filled(
    postgres: str,
    migrated_template: str,
    database: str,
    pool: asyncpg.Pool,
    other_pool: asyncpg.Pool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(RegistryClient(url))
        first = await stack.enter_async_context(AsyncExitStack())
        await first.enter_async_context(serving(other_pool, port=port))
        await register_event_types(pool, TYPES, registry=registry)
        rebuilt = await stack.enter_async_context(another_database(postgres, migrated_template))
        async with keeping(pool, registry, check_every_s=3600):  # so that it checks at the start, and after an outage
            await register_subjects(pool, {("events.Order-OrderShipped", 3), ("events.Order-OrderShipped", 4)})
            await wait_for(lambda: registry.find("events.Order-OrderShipped", ORDER_SHIPPED_V2.definition))
            assert await verify_registry(pool, registry) == []
            await first.aclose()
            assert warnings_of(caplog) == []
            await register_subjects(pool, {("events.Order-OrderPlaced", 2)})
            await wait_for(lambda: len(warnings_of(caplog)))
            await stack.enter_async_context(serving(rebuilt, port=port))
            await wait_for(lambda: len(warnings_of(caplog)), lambda count: count == 8)
        assert "can't be looked after now" in warnings_of(caplog)[0]
        assert "is looked after again" in warnings_of(caplog)[1]

        missing = [
            "the id 2 (OrderPlaced version 1)",
            "events.Order-OrderPlaced version 1 (OrderPlaced version 1)",
            "the id 3 (OrderShipped version 1)",
            "events.Order-OrderShipped version 1 (OrderShipped version 1)",
            "the id 4 (OrderShipped version 2)",
            "events.Order-OrderShipped version 2 (OrderShipped version 2)",
        ]
        said = [line.removeprefix(f"registry {url}: ").split(" is missing there")[0] for line in warnings_of(caplog)[2:]]
        assert sorted(said) == sorted(missing)
        assert await ask("GET", registry, "/subjects") == []  # nothing was registered under other ids

        caplog.clear()
        async with keeping(pool, registry, check_every_s=0.1):
            verify = ("registry", "verify", "--registry-url", url)
            lines = (await run(*verify, dsn=database, folder=tmp_path, code=1, output=True)).splitlines()
            assert [line.split(" is missing there")[0] for line in lines] == [
                *(f"✗ {each}" for each in missing),
                "✗ 6 differences",
            ]
            assert len(warnings_of(caplog)) == 6  # each once, however often it was checked
            pushed = await run("registry", "push", "--registry-url", url, dsn=database, folder=tmp_path)
            assert pushed.splitlines()[-1] == "✓ the registry agrees with Postgres"
            await wait_for(lambda: warnings_of(caplog)[-1].endswith("agrees with Postgres again"))
        assert "agrees" in await run(*verify, dsn=database, folder=tmp_path)
        assert await registry.find("events.Order-OrderShipped", ORDER_SHIPPED_V2.definition) == (2, 4)
        assert (await ask("GET", registry, "/mode/OrderPlaced"))["error_code"] == 40409  # as before
        assert await push_to_registry(pool, registry) == ([], [])
        await register_event_types(pool, [ORDER_PAID], registry=registry)
        assert (await ids(pool))["OrderPaid", 1] == 5  # its ids go on from ours


async def test_push_keeps_modes_and_brings_what_others_refer_to_first(pool: asyncpg.Pool, other_pool: asyncpg.Pool) -> None:
    """Schemas that others registered in our own registry, with references, go as well."""
    address = json.dumps(record("shop.Address", ("street", "string")))
    customer = json.dumps(record("shop.Customer", ("home", "shop.Address")))
    async with registry_over(pool) as ours, registry_over(other_pool) as theirs:
        await ask("PUT", ours, "/mode/b", {"mode": "IMPORT"})
        await ask("PUT", ours, "/mode/a", {"mode": "IMPORT"})
        await ours.import_version("b", 4, 30, address)
        references = [{"name": "shop.Address", "subject": "b", "version": 4}]
        body = {"schema": customer, "id": 20, "references": references}
        await ask("POST", ours, "/subjects/a/versions", body)
        await ask("PUT", theirs, "/mode/a", {"mode": "READONLY"})
        pushed = await push_to_registry(pool, theirs)
        assert pushed == ([("b", 30), ("a", 20)], [])
        assert await theirs.schema_id_at("b", 4) == 30
        assert await ask("GET", theirs, "/mode/a") == {"mode": "READONLY"}


async def test_apicurio_gives_ids_and_reads_records(pool: asyncpg.Pool, apicurio_url: str) -> None:
    namespace = f"t{uuid4().hex}"
    event_type = EventType.from_schema(record("OrderPlaced", ("customer_id", "string"), namespace=namespace))
    async with RegistryClient(apicurio_url) as registry:
        await registry.register(f"{namespace}-other", json.dumps(record("Other", ("a", "string"), namespace=namespace)))
        await register_event_types(pool, [event_type], registry=registry)
        place = await registry.find(f"{namespace}.OrderPlaced", event_type.definition)
        assert place is not None
        assert (await ids(pool))["OrderPlaced", 1] == place.schema_id > 1
        await register_subjects(pool, {(f"{namespace}-{namespace}.OrderPlaced", place.schema_id)})
        assert len(await verify_registry(pool, registry)) == 1
        assert await publish_subjects(pool, registry, set()) == []
        assert await verify_registry(pool, registry) == []
        store = PostgresEventStore(pool)
        await store.append("Order-1", "Order", [Event(event_type="OrderPlaced", data={"customer_id": "c"})], 0)
        (stored,) = await store.log.read_stored(0, 1, 10**6)
        assert await asyncio.to_thread(decoded, apicurio_url, stored.payload) == {"customer_id": "c"}


async def test_apicurio_keeps_no_ids_and_push_says_so(pool: asyncpg.Pool, apicurio_url: str) -> None:
    """A registry that was rebuilt: what Postgres pinned is not there."""
    namespace = f"t{uuid4().hex}"
    types = [EventType.from_schema(record(name, ("a", "string"), namespace=namespace)) for name in ("First", "Second")]
    async with RegistryClient(apicurio_url) as registry, registry_over(pool) as ours:
        for number, event_type in enumerate(types):
            subject = f"{namespace}-{event_type.name}"
            await ours.import_version(subject, 1, 1_000_000 + number, event_type.definition)
        await register_event_types(pool, types)
        assert len(await verify_registry(pool, registry)) == 4
        pushed = await push_to_registry(pool, registry)
        assert pushed.imported == []
        assert "it keeps no ids at an import" in str(pushed.left[0])
        assert len(pushed.left) == 5
        assert await registry.find(f"{namespace}-Second", types[1].definition) is None  # ended at the first
        assert await registry.schema(1_000_000) is None


async def test_a_backup_of_apicurio_brings_its_ids_back(pool: asyncpg.Pool, apicurio_url: str, tmp_path: Path) -> None:
    namespace = f"t{uuid4().hex}"
    types = [EventType.from_schema(record(name, ("a", "string"), namespace=namespace)) for name in ("First", "Second")]
    rebuilt = ApicurioService(tmp_path)
    async with RegistryClient(apicurio_url) as registry, httpx.AsyncClient(timeout=60) as http:
        await register_event_types(pool, types, registry=registry)
        backup = (await http.get(f"{own_api(apicurio_url)}/admin/export", headers={"Accept": "application/zip"})).content
        try:
            await asyncio.to_thread(rebuilt.start)
            async with RegistryClient(rebuilt.endpoint) as again:
                assert len(await verify_registry(pool, again)) == 2
                zipped = {"Content-Type": "application/zip"}
                await http.post(f"{own_api(rebuilt.endpoint)}/admin/import", content=backup, headers=zipped)
                assert await verify_registry(pool, again) == []
        finally:
            rebuilt.kill()


def own_api(url: str) -> str:
    return url.replace("/ccompat/v7", "/registry/v3")
