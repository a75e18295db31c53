"""The AsyncAPI document: valid by AsyncAPI's own schema, and made by the command from what is registered and published."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from jsonschema import Draft7Validator  # type: ignore[import-untyped]
from typer.testing import CliRunner

from eventspine import Event, EventType, PostgresEventStore
from eventspine.asyncapi import asyncapi_document
from eventspine.cli import app
from tests.event_types import EVENT_TYPES, paid, placed
from tests.npm import node_packages

_PERSONAL = EventType.from_schema(
    {
        "type": "record",
        "name": "CustomerNamed",
        "subject": "customer",
        "fields": [{"name": "customer", "type": "string"}, {"name": "name", "type": "string", "personal": True}],
    }
)
_TYPES = [*EVENT_TYPES, _PERSONAL]
_CATEGORIES = {
    "shop.Order": ["OrderPlaced", "OrderShipped", "OrderPaid"],
    "Refund": ["OrderPaid", "EverythingHappened"],
    "Customer": ["CustomerNamed"],
}


@pytest.fixture(scope="module")
def validator() -> Draft7Validator:
    """AsyncAPI's own schema of its documents, from its npm package."""
    path = node_packages() / "@asyncapi" / "specs" / "schemas" / "3.0.0.json"
    return Draft7Validator(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("value_format", ["data", "envelope"])
@pytest.mark.parametrize("bootstrap", ["", "one:9092, two:9092"])
@pytest.mark.parametrize("registry_url", ["", "http://127.0.0.1:8081"])
def test_the_document_is_valid(validator: Draft7Validator, value_format: str, bootstrap: str, registry_url: str) -> None:
    document = asyncapi_document(_TYPES, _CATEGORIES, bootstrap=bootstrap, registry_url=registry_url, value_format=value_format)
    assert [fault.message[:300] for fault in validator.iter_errors(document)] == []


def test_a_document_of_no_events_is_valid(validator: Draft7Validator) -> None:
    assert not list(validator.iter_errors(asyncapi_document([], {})))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document["operations"]["publishRefund"].update(action="shout"),
        lambda document: document["components"]["messages"]["OrderPaid.v1"]["payload"]["schema"].update(type="recrd"),
        lambda document: document["components"]["correlationIds"]["conversation"].update(location="header"),
        lambda document: document["components"]["messageBindings"]["keyed"]["kafka"].update(schemaIdLocation="key"),
        lambda document: document.pop("info"),
    ],
)
def test_a_fault_would_be_found(validator: Draft7Validator, spoil: Callable[[Any], object]) -> None:
    document = asyncapi_document(_TYPES, _CATEGORIES, bootstrap="one:9092")
    spoil(document)
    assert list(validator.iter_errors(document))


async def test_the_command(
    validator: Draft7Validator, store: PostgresEventStore, pool: asyncpg.Pool, database: str, tmp_path: Path
) -> None:
    """What is in which topic comes from the log's indexes, and from the subjects under which the relay listed schemas."""
    shipped = Event(event_type="OrderShipped", data={"carrier": "post", "tracking_code": "t"})
    await store.append("Order-1", "Order", [placed(), paid(), shipped], 0)
    await store.append("Refund-1", "Refund", [paid()], 0)
    ids = {pin.event_type.name: pin.schema_id for pin in await store.log.pinned_types()}
    await store.log.register_subjects({("x.Return-OrderShipped", ids["OrderShipped"]), ("y.Else-OrderPaid", ids["OrderPaid"])})
    flags = ["--postgres-dsn", database, "--kafka-bootstrap", "one:9092", "--topic-prefix", "x."]
    command = [*flags, "schema", "asyncapi", "--registry-url", "http://127.0.0.1:8081", "--title", "The shop"]
    shown = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert shown.exit_code == 0, shown.output
    document = json.loads(shown.stdout)
    assert not list(validator.iter_errors(document))
    assert document["info"]["title"] == "The shop"
    assert document["servers"]["broker1"]["bindings"]["kafka"]["schemaRegistryUrl"] == "http://127.0.0.1:8081"
    assert {channel["address"]: list(channel["messages"]) for channel in document["channels"].values()} == {
        "x.Order": ["OrderPaid.v1", "OrderPlaced.v1", "OrderShipped.v1", "OrderShipped.v2"],
        "x.Refund": ["OrderPaid.v1"],
        "x.Return": ["OrderShipped.v1", "OrderShipped.v2"],
    }
    file = tmp_path / "asyncapi.json"
    assert (await asyncio.to_thread(CliRunner().invoke, app, [*command, "--output", str(file)])).exit_code == 0
    assert json.loads(file.read_text()) == document


async def test_which_types_are_where_is_asked_of_indexes(store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    """However long the log is: the plan looks each type up, and reads no table of events."""
    from eventspine.schemas.postgres import load_sql

    sql = load_sql("eventspine.store.postgres", "sql/categories_of_types")
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL enable_seqscan = off")
        rows = await connection.fetch(f"EXPLAIN {sql.replace('$1', repr('events.'))}")
    plan = "\n".join(row[0] for row in rows)
    assert plan.count("events_type_idx") == 2
    assert "Seq Scan on events " not in plan
