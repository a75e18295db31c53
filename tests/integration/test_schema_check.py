"""`eventspine schema …` as people and CI run it: planted mistakes are found with the right words, legal changes pass."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import uvicorn
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from typer.testing import CliRunner

from eventspine import Event, EventspineError, EventType, SettingsError, connect, upcaster
from eventspine.check_store import load_held
from eventspine.cli import app
from eventspine.schemas.compatibility import Level
from eventspine.schemas.envelope import envelope_schema
from eventspine.schemas.postgres import load_sql
from eventspine.schemas.registry import registry_app
from tests.conftest import dsn_of
from tests.event_types import logical, record
from tests.waiting import wait_for

_modules = itertools.count(1)


class Shop:
    """A folder with schema files and modules, beside a store."""

    def __init__(self, folder: Path, database: str) -> None:
        self.folder = folder
        self.database = database

    async def run(self, *arguments: str, code: int = 0, dsn: bool = True) -> str:
        """Run `eventspine schema …` and return what it printed."""
        store = ["--postgres-dsn", self.database] if dsn else []
        done = await asyncio.to_thread(CliRunner().invoke, app, [*store, "schema", *arguments])
        if isinstance(done.exception, EventspineError):
            raise done.exception
        assert done.exit_code == code, done.output + repr(done.exception)
        return done.stdout

    def file(self, version: int, *fields: Any, name: str = "OrderPlaced", **more: Any) -> str:
        """Write a schema file and return its name."""
        path = self.folder / (f"{name}.avsc" if version == 1 else f"{name}.v{version}.avsc")
        path.write_text(json.dumps(record(name, *fields, **more)))
        return path.name

    def module(self, text: str) -> str:
        """Write a module and return its name, which no other test uses."""
        name = f"shop_schemas_{next(_modules)}"
        (self.folder / f"{name}.py").write_text(_IMPORTS + text)
        return name

    async def append(
        self, data: dict[str, Any], *fields: Any, category: str = "Order", name: str = "OrderPlaced", **more: Any
    ) -> None:
        """Register version 1 of an event type, and append an event of it."""
        event_type = EventType.from_schema(record(name, *fields, **more))
        async with connect(self.database, event_types=[event_type], max_connections=1) as store:
            await store.append(f"{category}-{name}", category, [Event(event_type=name, data=data)], 0)


_IMPORTS = """
from __future__ import annotations
import dataclasses, uuid
from typing import Any
import pydantic
from eventspine import Aggregate, Event, EventType, on, upcaster

def version(number, *fields, name="OrderPlaced"):
    members = [{"name": f[0], "type": f[1]} | ({"default": f[2]} if len(f) > 2 else {}) for f in fields]
    return EventType.from_schema({"type": "record", "name": name, "fields": members}, schema_version=number)

V1 = version(1, ("total", "long"))
"""


@pytest.fixture(scope="module")
def shared_database(postgres: str, migrated_template: str) -> Iterator[str]:
    """One database for all tests here: a new one for each would take most of their time."""
    name = "schema_check"

    async def run(statement: str) -> None:
        connection = await asyncpg.connect(postgres)
        await connection.execute(statement)
        await connection.close()

    asyncio.run(run(f"CREATE DATABASE {name} TEMPLATE {migrated_template}"))
    yield dsn_of(postgres, name)
    asyncio.run(run(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def database(shared_database: str) -> str:
    """DSN of the database, emptied: past the triggers that keep history."""
    connection = await asyncpg.connect(shared_database)
    await connection.execute("SET session_replication_role = replica")
    for table in ("events", "event_tags", "links", "snapshots", "subjects", "registry_settings", "event_types", "schemas"):
        await connection.execute(f"DELETE FROM {table}")
    await connection.close()
    return shared_database


@pytest.fixture
def shop(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return Shop(tmp_path, database)


def enum(*symbols: str, **more: Any) -> dict[str, Any]:
    return {"type": "enum", "name": "Size", "symbols": list(symbols), **more}


def decimal(precision: int, scale: int) -> dict[str, Any]:
    return logical("bytes", "decimal", precision=precision, scale=scale)


def fixed(size: int) -> dict[str, Any]:
    return {"type": "fixed", "name": "Digest", "size": size}


def array(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def values(inner: Any) -> dict[str, Any]:
    return {"type": "map", "values": inner}


def line(*fields: Any, name: str = "Line") -> dict[str, Any]:
    return record(name, ("sku", "string"), *fields)


ADDRESS = record("Address", ("street", "string"), ("zip", ["null", "string"], None))
MILLIS, MICROS = logical("long", "timestamp-millis"), logical("long", "timestamp-micros")
A_MOMENT = '"2024-02-29T23:59:59.999000Z"'


@pytest.mark.parametrize(
    ("before", "after", "level", "said", "example"),
    [
        pytest.param(
            [("total", "long"), ("note", "string")],
            [("total", "long")],
            "",
            ["field 'note' is gone"],
            '{"total":0}',
            id="field removed",
        ),
        pytest.param(
            [("total", "long")],
            [("total", "long"), ("currency", "string")],
            "",
            ["field 'currency' is new and has no default", '"type": ["null", "string"], "default": null'],
            '{"total":0}',
            id="field added without default",
        ),
        pytest.param(
            [("total", "long")],
            [("sum", "long")],
            "",
            [
                "field 'sum' is new",
                'if it is \'total\' under another name, give it "aliases": ["total"]',
                "field 'total' is gone",
            ],
            '{"total":0}',
            id="field renamed",
        ),
        pytest.param(
            [("total", "long")],
            [("total", "string")],
            "",
            ["total: long became string; keep the type"],
            '{"total":0}',
            id="long to string",
        ),
        pytest.param([("total", "long")], [("total", "int")], "", ["total: long became int"], '{"total":0}', id="long to int"),
        pytest.param(
            [("total", "long")],
            [("total", "double")],
            "BACKWARD",
            ["numbers beyond 2**53 lose digits"],
            '{"total":9007199254740993}',
            id="long to double",
        ),
        pytest.param(
            [("note", ["null", "string"], None)],
            [("note", "string")],
            "",
            ["note: it can't be null any more"],
            '{"note":null}',
            id="optional made required",
        ),
        pytest.param(
            [("size", enum("S", "L"))],
            [("size", enum("S"))],
            "",
            ["size: symbol L of enum Size is gone"],
            '{"size":"L"}',
            id="symbol removed",
        ),
        pytest.param(
            [("size", enum("S", "L", default="S"))],
            [("size", enum("S", default="S"))],
            "",
            ["events that hold it would read as S"],
            '{"size":"L"}, written by version 1, reads as {"size":"S"} by version 2',
            id="symbol removed, read as the default",
        ),
        pytest.param(
            [("size", enum("S"))],
            [("size", enum("S", "L"))],
            "FULL",
            ["symbol L of enum Size is new", "add symbols only to an enum that has a default"],
            '{"size":"L"}, written by version 2',
            id="symbol added without default",
        ),
        pytest.param(
            [("price", decimal(9, 2))],
            [("price", decimal(9, 3))],
            "",
            ["decimal(9, 2) became decimal(9, 3)"],
            '{"price":"0.01"}, written by version 1, reads as {"price":"0.001"} by version 2',
            id="scale of a decimal",
        ),
        pytest.param(
            [("price", decimal(9, 2))],
            [("price", decimal(7, 2))],
            "BACKWARD",
            ["decimal(9, 2) became decimal(7, 2)"],
            "price",
            id="precision of a decimal",
        ),
        pytest.param(
            [("at", MILLIS)],
            [("at", MICROS)],
            "",
            ["at: long (timestamp-millis) became long (timestamp-micros)"],
            f'{{"at":{A_MOMENT}}}, written by version 1, reads as {{"at":"1970-01-20T18:47:31.199999Z"}} by version 2',
            id="milliseconds to microseconds",
        ),
        pytest.param(
            [("id", "string")],
            [("id", logical("string", "uuid"))],
            "",
            ["id: string became string (uuid)"],
            '{"id":""}',
            id="string to UUID",
        ),
        pytest.param(
            [("digest", fixed(4))],
            [("digest", fixed(8))],
            "",
            ["fixed Digest went from 4 to 8 bytes"],
            '{"digest":"AAAAAA=="}',
            id="size of fixed",
        ),
        pytest.param(
            [("by", ["null", "long", "string"])],
            [("by", ["null", "long"])],
            "",
            ["by: string is no longer among its types"],
            '{"by":""}',
            id="union branch removed",
        ),
        pytest.param(
            [("lines", array(line(("price", "long"))))],
            [("lines", array(line()))],
            "",
            ["lines[].price: field 'price' is gone"],
            '{"lines":[{"sku":""}]}, written by version 2',
            id="nested field removed",
        ),
        pytest.param(
            [("tags", array("string"))],
            [("tags", array("long"))],
            "",
            ["tags[]: string became long"],
            '{"tags":[',
            id="items of an array",
        ),
        pytest.param(
            [("counts", values("long"))],
            [("counts", values("string"))],
            "",
            ["counts{}: long became string"],
            '{"counts":{',
            id="values of a map",
        ),
        pytest.param(
            [("first", line())],
            [("first", line(name="Row"))],
            "",
            ["first: record Line is now called Row"],
            '{"first":{"sku":""}}',
            id="nested record renamed",
        ),
    ],
)
async def test_a_mistake_in_a_new_version_is_found(
    shop: Shop, before: list[Any], after: list[Any], level: str, said: list[str], example: str
) -> None:
    await run_sql(shop.database, EventType.from_schema(record("OrderPlaced", *before)))
    found = await shop.run("check", shop.file(2, *after), *(["--level", level] if level else []), code=1)
    assert f"✗ OrderPlaced version 2 does not go with version 1 ({level or 'FULL_TRANSITIVE'})\n" in found
    for words in said:
        assert words in found
    shown = next(each for each in found.splitlines() if each.startswith("    example: "))
    assert example in shown
    assert "advice: lead the earlier events over by a function" in found
    assert found.endswith("1 mistake\n")
    with pytest.raises(ValueError, match="does not go with version 1"):  # and it can't be registered by mistake
        await shop.run("register", "OrderPlaced.v2.avsc", *(["--level", level] if level else []))


async def run_sql(database: str, event_type: EventType) -> None:
    """Register a type and pretend that the log holds an event of it: what is in events does not matter to the gate."""
    async with connect(database, event_types=[event_type], max_connections=1):
        pass


async def test_another_namespace_is_found(shop: Shop) -> None:
    await shop.append({"total": 1}, ("total", "long"), namespace="sales")
    found = await shop.run("check", shop.file(2, ("total", "long"), namespace="shop"), code=1)
    assert "the record sales.OrderPlaced is now called shop.OrderPlaced: that is another subject in a registry" in found


async def test_an_invalid_schema_is_found(shop: Shop) -> None:
    await shop.append({"total": 1}, ("total", "long"))
    found = await shop.run("check", shop.file(2, ("total", "long"), ("count", "int", "none")), code=1)
    assert "✗ OrderPlaced version 2: invalid Avro schema: count" in found
    module = shop.module('V2 = version(2, ("total", "long"), ("currency", ["null", "string"], "EUR"), ("x", "nonsense"))\n')
    assert "✗ OrderPlaced version 2: invalid Avro schema" in await shop.run("check", "--schemas", module, code=1)


async def test_a_registered_version_with_another_schema_is_found(shop: Shop) -> None:
    await shop.append({"total": 1}, ("total", "long"))
    found = await shop.run("check", shop.file(1, ("total", "long"), ("note", "string", "")), code=1)
    assert "✗ OrderPlaced version 1 is registered with another schema" in found
    assert "give the changed schema version 2" in found


V2 = 'V2 = version(2, ("total", "long"), ("currency", "string"))\n'
ADD = '@upcaster("OrderPlaced", from_version=1)\ndef add_currency(data):\n    return {**data, "currency": "EUR"}\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(
            'V2 = version(2, ("total", "string"))\nV3 = version(3, ("total", "string"), ("note", "string", ""))\n'
            '@upcaster("OrderPlaced", from_version=2)\ndef later(data):\n    return data | {"note": "new"}\n',
            [
                "✗ OrderPlaced version 2 does not go with version 1",
                "✗ OrderPlaced version 3 does not go with version 1",
                '{"total":0}',
            ],
            id="hole",
        ),
        pytest.param(
            V2 + ADD + '@upcaster("OrderPlaced", from_version=1)\ndef add_more(data):\n    return {**data, "currency": "USD"}\n',
            [
                "upcaster add_currency (OrderPlaced 1 → 2) and upcaster add_more (OrderPlaced 1 → 2) begin at the same version",
                "give one of them",
            ],
            id="two from one version",
        ),
        pytest.param(
            V2 + ADD + '@upcaster("OrderPlaced", from_version=2, to_version=1)\ndef back(data):\n    return data\n',
            ["upcaster back (OrderPlaced 2 → 1) leads back, so that reading would never end"],
            id="cycle",
        ),
        pytest.param(
            V2 + ADD.replace("OrderPlaced", "OrderPlacd"),
            ["upcaster add_currency (OrderPlacd 1 → 2): there is no event type 'OrderPlacd'", "known are OrderPlaced"],
            id="unknown event type",
        ),
        pytest.param(
            V2 + ADD.replace('"EUR"', "978"),
            [
                "upcaster add_currency (OrderPlaced 1 → 2) returns what does not fit version 2",
                "currency",
                'example: {"total":0}, written by version 1',
            ],
            id="returns another type",
        ),
        pytest.param(
            V2 + ADD.replace('"EUR"', '("EUR" if data["total"] >= 0 else None)'),
            ["returns what does not fit version 2", 'example: {"total":-1}, written by version 1'],
            id="returns another type for some",
        ),
        pytest.param(
            V2 + ADD.replace('"EUR"', "data['curency']"),
            ["upcaster add_currency (OrderPlaced 1 → 2) raises KeyError: 'curency'", 'example: {"total":0}'],
            id="raises",
        ),
        pytest.param(
            f'V2 = version(2, ("home", {ADDRESS}))\n'
            '@upcaster("OrderPlaced", from_version=1)\ndef nest(data):\n    return {"home": {"street": str(data["total"])}}\n',
            ["upcaster nest (OrderPlaced 1 → 2) leaves out 'home.zip', which version 2 has", "what is read does not"],
            id="leaves a default out",
        ),
        pytest.param(
            V2 + ADD.replace('"EUR"', "str(uuid.uuid4())"),
            ["returns something else when it runs again; it runs for each reading, so it must be pure"],
            id="not pure",
        ),
        pytest.param(
            V2 + ADD + "@add_currency.downcaster\ndef _(data):\n    return data\n",
            [
                "the way back of upcaster add_currency (OrderPlaced 1 → 2) raises ValueError",
                "written by version 2",
            ],
            id="a way back that leads elsewhere",
        ),
    ],
)
async def test_a_mistake_in_an_upcaster_is_found(shop: Shop, text: str, said: list[str]) -> None:
    await shop.append({"total": 1}, ("total", "long"))
    found = await shop.run("check", "--schemas", shop.module(text), code=1)
    for words in said:
        assert words in found


async def test_an_upcaster_that_raises_on_null_is_found(shop: Shop) -> None:
    await shop.append({"note": "a"}, ("note", ["null", "string"], None))
    module = shop.module(
        'V1 = version(1, ("note", ["null", "string"], None))\nV2 = version(2, ("words", {"type": "array", "items": "string"}))\n'
        '@upcaster("OrderPlaced", from_version=1)\ndef split(data):\n    return {"words": data["note"].split()}\n'
    )
    found = await shop.run("check", "--schemas", module, code=1)
    assert "upcaster split (OrderPlaced 1 → 2) raises AttributeError: 'NoneType' object has no attribute 'split'" in found
    assert 'example: {"note":null}, written by version 1' in found


async def test_no_level_leaves_reading_to_be_checked(shop: Shop) -> None:
    await shop.append({"total": 1}, ("total", "long"))
    found = await shop.run("check", shop.file(2, ("total", "string")), "--level", "NONE", code=1)
    assert "✗ events of OrderPlaced version 1 can't be read as version 2: total: long became string" in found
    assert "advice: write an upcaster" in found
    assert "- no upcasters were given: --schemas names the modules that hold them" in found


async def test_a_program_that_is_older_than_the_store_is_checked(shop: Shop) -> None:
    await shop.append({"total": 1}, ("total", "long"))
    newer = EventType.from_schema(record("OrderPlaced", ("total", "long"), ("note", "string")), schema_version=2)
    async with connect(
        shop.database, event_types=[newer], compatibility=Level.NONE, upcasters=[_ADD_NOTE], max_connections=1
    ) as store:
        await store.append("Order-9", "Order", [Event(event_type="OrderPlaced", data={"total": 1, "note": ""})], 0)
    assert "2 versions" in await shop.run("check", "--schemas", shop.module(""))  # without the field, by Avro's rules
    found = await shop.run("check", "--schemas", shop.module('del V1\nV1 = version(1, ("sum", "long"))\n'), code=1)
    assert "✗ OrderPlaced version 1 is registered with another schema" in found


_ADD_NOTE = upcaster("OrderPlaced", from_version=1)(lambda data: {**data, "note": ""})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(
            "@dataclasses.dataclass\nclass OrderPlaced:\n    total: int\n    currency: str\n",
            ["class OrderPlaced and OrderPlaced version 1: the class requires what the schema does not have: currency"],
            id="class has a required field more",
        ),
        pytest.param(
            "@dataclasses.dataclass\nclass OrderPlaced:\n    pass\n",
            ["the class lacks what the schema has: total"],
            id="class lacks a field",
        ),
        pytest.param(
            "class OrderPlaced(pydantic.BaseModel):\n    total: uuid.UUID\n",
            ["the class does not take what the schema lets pass", "total", 'example: {"total":0}'],
            id="model of another type",
        ),
        pytest.param(
            "@dataclasses.dataclass\nclass OrderPlaced:\n    total: str\n",
            ["Expected `str`, got `int`", 'example: {"total":0}'],
            id="dataclass of another type",
        ),
    ],
)
async def test_a_class_that_does_not_fit_is_found(shop: Shop, text: str, said: list[str]) -> None:
    await shop.append({"total": 1}, ("total", "long"))
    module = shop.module(text + "TYPE = dataclasses.replace(V1, model=OrderPlaced)\ndel V1\n")
    found = await shop.run("check", "--schemas", module, code=1)
    for words in said:
        assert words in found


ORDER = """
class Order(Aggregate):
    total: int = 0
    notes: list[str] = []

    @on("OrderPlaced")
    def placed(self, event: Event) -> None:
"""


async def test_a_handler_that_asks_for_a_field_that_is_gone_is_found(shop: Shop) -> None:
    await shop.append({"total": 1, "note": "a"}, ("total", "long"), ("note", "string", ""))
    text = 'V1 = version(1, ("total", "long"), ("note", "string", ""))\nV2 = version(2, ("total", "long"))\n'
    module = shop.module(text + ORDER + '        self.notes.append(event.data["note"])\n')
    found = await shop.run("check", "--schemas", module, code=1)
    assert "✗ Order.placed asks OrderPlaced for the field 'note', which its data does not have" in found
    assert 'example: {"total":0}, written by version 2' in found


async def test_a_handler_that_fails_on_null_is_found(shop: Shop) -> None:
    await shop.append({"note": "a"}, ("note", ["null", "string"], None))
    text = 'V1 = version(1, ("note", ["null", "string"], None))\n'
    module = shop.module(text + ORDER + '        self.notes += event.data["note"].split()\n')
    found = await shop.run("check", "--schemas", module, code=1)
    assert "✗ Order.placed fails on data that OrderPlaced may hold: AttributeError" in found
    assert 'example: {"note":null}' in found


async def test_what_a_handler_refuses_or_needs_is_no_mistake(shop: Shop) -> None:
    """An error of the domain; a dict of the state's own that has no such key yet."""
    await shop.append({"total": 1}, ("total", "long"))
    text = '        if event.data["total"] < 0:\n            raise RuntimeError("refused")\n'
    assert "no mistakes" in await shop.run("check", "--schemas", shop.module(ORDER + text))
    text = '        self.total = {}[event.data["total"]]\n'
    text += '\n    @on("OrderPaid")\n    def paid(self, event: Event) -> None:\n        pass\n'
    found = await shop.run("check", "--schemas", shop.module(ORDER + text))
    assert "- Order.placed fails on every example of OrderPlaced (KeyError: 0): not judged" in found
    assert "- Order handles OrderPaid: there is no such event type here" in found


async def test_handlers_that_work_on_instances_are_run(shop: Shop) -> None:
    await shop.append({"home": {"street": "a"}}, ("home", ADDRESS))
    classes = "@dataclasses.dataclass\nclass Address:\n    street: str\n    zip: str | None\n"
    classes += "@dataclasses.dataclass\nclass OrderPlaced:\n    home: Address\n"
    handler = ORDER + "        self.notes.append(event.data_as(OrderPlaced).home.street)\n"
    assert "no mistakes" in await shop.run("check", "--schemas", shop.module("del V1\n" + classes + handler))
    found = await shop.run("check", "--schemas", shop.module("del V1\n" + classes.replace(" | None", "") + handler), code=1)
    assert "✗ Order.placed fails on data that OrderPlaced may hold: DecodeError" in found


async def test_a_snapshot_of_another_shape_is_found(shop: Shop) -> None:
    await shop.append({"total": 1}, ("total", "long"))
    async with connect(shop.database, max_connections=1) as store:
        for number, state in {"1": {"total": 5, "notes": []}, "2": {"total": "five", "notes": []}}.items():
            await store.save_snapshot(f"Order-{number}", "Order", {"last_event_id": "x", "state": state}, version=1)
    found = await shop.run("check", "--schemas", shop.module(ORDER + "        pass\n"), code=1)
    assert "✗ Order can't restore the snapshot Order-2@1: ValidationError: Expected `int`, got `str`" in found
    assert "Order.snapshot_version is 2" in found
    newer = ORDER.replace("    total: int", "    snapshot_version = 2\n    total: int") + "        pass\n"
    assert "no mistakes" in await shop.run("check", "--schemas", shop.module(newer))


@pytest.mark.parametrize(
    ("before", "after", "level"),
    [
        pytest.param([("a", "long")], [("a", "long"), ("b", "string", "")], "", id="field with a default"),
        pytest.param([("a", "long")], [("a", "long"), ("b", ["null", "string"], None)], "", id="optional field"),
        pytest.param([("a", "long"), ("b", "string", "")], [("a", "long")], "", id="field with a default removed"),
        pytest.param([("a", "long"), ("b", "string")], [("a", "long")], "BACKWARD", id="field removed, backward"),
        pytest.param([("a", "long")], [("a", "long"), ("b", ["null", "string"], None)], "FORWARD", id="optional field, forward"),
        pytest.param([("a", "int")], [("a", "long")], "BACKWARD", id="int to long"),
        pytest.param([("a", "int")], [("a", "double")], "BACKWARD", id="int to double"),
        pytest.param([("a", ["null", "long"], None)], [("b", "string", "")], "", id="one optional field for another"),
        pytest.param([("a", "long")], [("a", ["null", "long"])], "BACKWARD", id="required made optional"),
        pytest.param([("a", ["null", "long"])], [("a", ["null", "long", "string"])], "BACKWARD", id="union branch added"),
        pytest.param([("a", ["null", "long"])], [("a", ["long", "null"])], "", id="union in another order"),
        pytest.param([("a", "long"), ("b", "string")], [("b", "string"), ("a", "long")], "", id="fields in another order"),
        pytest.param([("a", "long"), ("b", "int", 1)], [("a", "long"), ("b", "int", 2)], "", id="another default"),
        pytest.param(
            [("a", enum("S", default="S"))], [("a", enum("S", "L", default="S"))], "", id="symbol added to an enum with a default"
        ),
        pytest.param([("a", enum("S"))], [("a", enum("S", "L"))], "BACKWARD", id="symbol added, backward"),
        pytest.param([("a", enum("S", "L"))], [("a", enum("L", "S"))], "", id="symbols in another order"),
        pytest.param([("a", array(line()))], [("a", array(line(("price", "long", 0))))], "", id="nested field with a default"),
        pytest.param([("a", "long")], [("a", "long"), ("b", ["null", line()], None)], "", id="optional record"),
        pytest.param([("a", "long")], [("a", "long"), ("b", decimal(9, 2), "\u0000")], "", id="decimal with a default"),
        pytest.param([("a", MICROS)], [("a", MICROS), ("b", values(array("string")), {})], "", id="map of arrays with a default"),
        pytest.param([("a", "long")], [("a", "long")], "", id="no change but the documentation"),
    ],
)
async def test_a_legal_change_passes(shop: Shop, before: list[Any], after: list[Any], level: str) -> None:
    await run_sql(shop.database, EventType.from_schema(record("OrderPlaced", *before)))
    file = shop.file(2, *after, doc="An order was placed.")
    options = ["--level", level] if level else []
    assert "✓ checked: 1 event type, 1 new version" in await shop.run("check", file, *options)
    assert await shop.run("register", file, *options) == "OrderPlaced version 2 is registered\n"
    assert "no mistakes" in await shop.run("check")


async def test_the_bounds_of_numbers_are_a_note(shop: Shop) -> None:
    """`total * 100` is not wrong because no order of 2**63 - 1 fits: what is never written must not stop a deployment."""
    await shop.append({"total": 1}, ("total", "long"))
    module = shop.module(
        'V2 = version(2, ("cents", "long"))\n@upcaster("OrderPlaced", from_version=1)\ndef to_cents(data):\n'
        '    return {"cents": data["total"] * 100}\n'
    )
    found = await shop.run("check", "--schemas", module)
    assert "- only at the bounds of numbers: upcaster to_cents (OrderPlaced 1 → 2) returns what does not fit version 2" in found


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            V2 + ADD + "@add_currency.downcaster\ndef _(data):\n    if data['currency'] != 'EUR':\n"
            "        raise ValueError('version 1 knows euros only')\n    return {'total': data['total']}\n",
            id="a way back that refuses",
        ),
        pytest.param(V2 + ADD, id="a field that an upcaster fills"),
        pytest.param(
            V2 + ADD + 'V3 = version(3, ("total", "long"), ("currency", "string"), ("note", "string", ""))\n',
            id="then Avro's rules",
        ),
        pytest.param(
            V2 + ADD + "@add_currency.downcaster\ndef _(data):\n    return {'total': data['total']}\n", id="with a way back"
        ),
        pytest.param(
            'V2 = version(2, ("total", "string"))\n@upcaster("OrderPlaced", from_version=1)\ndef to_text(data):\n'
            '    data["total"] = str(data["total"])\n    return data\n',
            id="another type, changed in place",
        ),
        pytest.param(
            'V2 = version(2, ("sum", "long"))\n@upcaster("OrderPlaced", from_version=1)\ndef rename(data):\n'
            '    return {"sum": data["total"]}\n',
            id="another name",
        ),
        pytest.param('PAID = version(1, ("amount", "long"), name="OrderPaid")\n', id="a new event type"),
        pytest.param(
            "class OrderPlaced(pydantic.BaseModel):\n    total: int = pydantic.Field(ge=1)\n    note: str = ''\n"
            "TYPE = dataclasses.replace(version(2, ('total', 'long'), ('note', 'string', '')), model=OrderPlaced)\n",
            id="a class with a rule of its own",
        ),
        pytest.param(
            "@dataclasses.dataclass\nclass OrderPlaced:\n    total: int\n    def __post_init__(self):\n"
            "        if self.total < 1:\n            raise ValueError('none')\n"
            "TYPE = dataclasses.replace(V1, model=OrderPlaced)\ndel V1\n",
            id="a dataclass with a rule of its own",
        ),
        pytest.param(
            V2 + ADD + ORDER + '        self.notes.append(event.data["currency"])\n', id="an aggregate that reads today's version"
        ),
    ],
)
async def test_a_legal_program_passes(shop: Shop, text: str) -> None:
    await shop.append({"total": 1}, ("total", "long"))
    assert "no mistakes" in await shop.run("check", "--schemas", shop.module(text))


@pytest.fixture
async def registry(pool: asyncpg.Pool) -> AsyncIterator[str]:
    """URL of a registry over the test's database."""
    server = uvicorn.Server(uvicorn.Config(registry_app(pool), port=0, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    await wait_for(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving


async def test_the_registry_is_asked_under_each_strategy(shop: Shop, registry: str) -> None:
    await shop.append({"total": 1}, ("total", "long"), namespace="shop")
    make: Any = SchemaRegistryClient
    placed = Schema(json.dumps(record("OrderPlaced", ("total", "long"), namespace="shop")), "AVRO")
    with make({"url": registry}) as client:
        await asyncio.to_thread(client.set_compatibility, level="BACKWARD")
        for subject in ("events.Order-value", "shop.OrderPlaced", "events.Order-shop.OrderPlaced"):
            await asyncio.to_thread(client.register_schema, subject, placed)

    # Our readers have an upcaster; those that read by the registry do not.
    schema = record("OrderPlaced", ("total", "long"), ("currency", "string"), namespace="shop")
    newer = shop.module(f"V2 = EventType.from_schema({schema}, schema_version=2)\ndel V1\n" + ADD)
    asked = ["check", "--schemas", newer, "--registry", registry, "--strategy"]
    for strategy, subject in {
        "TopicNameStrategy": "events.Order-value",
        "RecordNameStrategy": "shop.OrderPlaced",
        "TopicRecordNameStrategy": "events.Order-shop.OrderPlaced",
    }.items():
        found = await shop.run(*asked, strategy, code=1)
        assert f"✗ the registry refuses OrderPlaced version 2 under the subject {subject} ({strategy})" in found
        assert "compatibility there: BACKWARD" in found
    assert (await shop.run(*asked, "all", code=1)).count("✗ the registry refuses") == 3

    # A second type in the topic: only one strategy has no room for it.
    paid = shop.file(1, ("amount", "long"), name="OrderPaid", namespace="shop")
    aggregate = shop.module(ORDER.replace("OrderPlaced", "OrderPaid") + "        pass\ndel V1\n")
    asked = ["check", paid, "--schemas", aggregate, "--registry", registry, "--strategy"]
    found = await shop.run(*asked, "TopicNameStrategy", code=1)
    assert "that subject holds the record shop.OrderPlaced: under TopicNameStrategy, a topic takes one type of record" in found
    assert "publish with TopicRecordNameStrategy" in found
    assert "; no mistakes" in await shop.run(*asked, "TopicRecordNameStrategy")
    with pytest.raises(SettingsError, match="choose one of"):
        await shop.run(*asked, "SubjectStrategy")


async def test_the_registry_is_asked_for_what_is_published(shop: Shop, registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With envelopes as values, their schemas are what other teams read."""
    monkeypatch.setenv("EVENTSPINE_VALUE_FORMAT", "envelope")
    await shop.append({"total": 1}, ("total", "long"))
    subject = "events.Order-OrderPlacedEnvelope"
    make: Any = SchemaRegistryClient
    with make({"url": registry}) as client:
        schema = json.dumps(envelope_schema(json.dumps(record("OrderPlaced", ("total", "long")))))
        await asyncio.to_thread(client.register_schema, subject, Schema(schema, "AVRO"))
    found = await shop.run("check", "--schemas", shop.module(V2 + ADD), "--registry", registry, code=1)
    assert f"✗ the registry refuses OrderPlaced version 2 under the subject {subject} (TopicRecordNameStrategy)" in found


async def test_an_absent_registry_is_an_error(shop: Shop) -> None:
    await shop.append({"total": 1}, ("total", "long"))
    with pytest.raises(EventspineError, match="is away"):
        await shop.run("check", shop.file(1, ("total", "long")), "--registry", "http://127.0.0.1:1")
    with pytest.raises(SettingsError, match="give a URL"):
        await shop.run("check", "--registry", "127.0.0.1:8081")


async def test_without_a_store_the_given_versions_are_checked(shop: Shop) -> None:
    files = [shop.file(1, ("total", "long")), shop.file(2, ("total", "long"), ("note", "string", ""))]
    found = await shop.run("check", *files, dsn=False)
    assert "- no store was asked: postgres_dsn is not set" in found
    assert "1 event type, 2 new versions, 2 versions" in found
    with pytest.raises(SettingsError, match="nothing to check"):
        await shop.run("check", dsn=False)


async def test_json_for_scripts(shop: Shop) -> None:
    await shop.append({"total": 1}, ("total", "long"))
    found = json.loads(await shop.run("check", shop.file(2, ("total", "string")), "--json", code=1))
    (mistake,) = found["mistakes"]
    assert mistake["kind"] == "gate"
    assert mistake["example"] == {"total": 0}
    assert mistake["outcome"] == "written by version 1, can't be read by version 2"
    assert found["checked"]["new versions"] == 1
    passed = json.loads(await shop.run("check", "--json"))
    assert passed["mistakes"] == []
    assert passed["checked"] == {"event types": 1, "versions": 1, "examples": 6}


async def test_only_what_the_log_holds_is_converted(shop: Shop) -> None:
    """A registered type without events breaks no reader."""
    await shop.append({"total": 1}, ("total", "long"))
    await shop.append({"amount": 1}, ("amount", "long"), name="OrderPaid")
    async with connect(shop.database, event_types=[EventType.from_schema(record("NeverWritten"))], max_connections=1):
        pass
    checked = json.loads(await shop.run("check", "--json"))["checked"]
    assert checked["event types"] == 2


async def test_looking_for_versions_does_not_read_the_log(shop: Shop) -> None:
    """Thousands of events of one type: the statement touches its first and last thousand, by the index."""
    async with connect(
        shop.database, event_types=[EventType.from_schema(record("Counted", ("n", "long")))], max_connections=2
    ) as store:
        for batch in range(10):
            await store.append(f"Counter-{batch}", "Counter", [Event(event_type="Counted", data={"n": n}) for n in range(500)], 0)
        newer = EventType.from_schema(record("Counted", ("n", "long"), ("m", "long", 0)), schema_version=2)
        await store.register([newer])
        held = await load_held(store.pool)
        assert held.categories == {"Counted": {"Counter"}}
        assert held.versions == {"Counted": {1, 2}}  # not all were looked at, so that every registered version counts
        async with store.pool.acquire() as connection:
            await connection.execute("ANALYZE events")
            plan = await connection.fetchval(
                "EXPLAIN (ANALYZE, FORMAT JSON) " + load_sql(_STORE, "sql/held_versions").replace("$1", "20")
            )
    scans = list(_scans(json.loads(plan)[0]["Plan"]))
    assert scans
    assert all(scan["Node Type"] in ("Index Scan", "Index Only Scan", "Bitmap Heap Scan") for scan in scans), scans
    assert max(scan["Actual Rows"] * scan["Actual Loops"] for scan in scans) <= 40, scans


_STORE = "eventspine.store.postgres"


def _scans(plan: Any) -> Any:
    if plan.get("Relation Name") == "events":
        yield plan
    for each in plan.get("Plans", ()):
        yield from _scans(each)


async def test_a_role_that_can_only_read_is_enough(shop: Shop) -> None:
    """The rights that docs/schema-check.md names; in a process of its own, as in CI."""
    await shop.append({"total": 1}, ("total", "long"))
    page = (Path(__file__).parents[2] / "docs" / "schema-check.md").read_text()
    grant = next(line.strip() for line in page.splitlines() if line.strip().startswith("GRANT SELECT"))
    connection = await asyncpg.connect(shop.database)
    await connection.execute("CREATE ROLE schema_check")
    try:
        await connection.execute(grant)
        module = shop.module(ORDER + '        self.total = event.data["total"]\n')
        command = [sys.executable, "-m", "eventspine", "schema", "check", shop.file(2, ("total", "string")), "--schemas", module]
        environment = {**os.environ, "EVENTSPINE_POSTGRES_DSN": f"{shop.database}?role=schema_check"}
        done = await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1, done.stderr
        assert "✗ OrderPlaced version 2 does not go with version 1" in done.stdout
    finally:
        await connection.execute("DROP OWNED BY schema_check; DROP ROLE schema_check")
        await connection.close()


async def test_diff_of_files_and_of_registered_versions(shop: Shop) -> None:
    await shop.append({"total": 1}, ("total", "long"))
    newer = shop.file(2, ("total", "long"), ("currency", "string"))
    assert await shop.run("diff", "OrderPlaced:1", newer) == (
        "OrderPlaced version 1 → OrderPlaced version 2\n"
        "  + currency: string\n"
        "BACKWARD  no\n"
        "  field 'currency' is new and has no default: events written before can't be read; give it a default, "
        'e.g. "type": ["null", "string"], "default": null\n'
        "FORWARD   yes\n"
        "FULL      no\n"
    )
    facts = json.loads(await shop.run("diff", newer, newer, "--json", dsn=False))
    assert facts == {"differences": [], "levels": {"BACKWARD": [], "FORWARD": [], "FULL": []}}
    for place, words in {"OrderPlaced:7": "neither a .avsc file nor registered", "No.avsc": "there is no file"}.items():
        with pytest.raises(SettingsError, match=words):
            await shop.run("diff", place, newer)


async def test_new_files_and_their_next_versions(shop: Shop) -> None:
    assert (
        await shop.run("new", "OrderPlaced", "customer:string", "price:decimal(12,2)", "note:string?", dsn=False)
        == "OrderPlaced.avsc\n"
    )
    assert (
        await shop.run("new", "OrderPlaced", "tags:string[]", "at:timestamp", "counts:long{}", dsn=False)
        == "OrderPlaced.v2.avsc\n"
    )
    assert await shop.run("new", "OrderPlaced", "paid:boolean", dsn=False) == "OrderPlaced.v3.avsc\n"
    newest = EventType.from_avsc(shop.folder / "OrderPlaced.v3.avsc")
    assert {member["name"]: member["type"] for member in newest.schema["fields"]} == {
        "customer": "string",
        "price": decimal(12, 2),
        "note": ["null", "string"],
        "tags": ["null", array("string")],
        "at": ["null", MICROS],
        "counts": ["null", values("long")],
        "paid": ["null", "boolean"],
    }
    assert (shop.folder / "OrderPlaced.avsc").read_text().startswith('{\n  "type": "record",\n  "name": "OrderPlaced",\n')
    assert "no mistakes" in await shop.run("check", *(each.name for each in shop.folder.glob("*.avsc")), dsn=False)
    for wrong, words in {"paid:long": "already", "x:money": "no type", "x": "NAME:TYPE"}.items():
        with pytest.raises(SettingsError, match=words):
            await shop.run("new", "OrderPlaced", wrong, dsn=False)
    with pytest.raises(SettingsError, match="name the fields"):
        await shop.run("new", "OrderPlaced", dsn=False)


async def test_export_and_register_elsewhere(shop: Shop, empty_database: str) -> None:
    await shop.append({"total": 1}, ("total", "long"))
    await shop.run("register", shop.file(2, ("total", "long"), ("note", "string", "ü")))
    said = await shop.run("export", "--to", "exported")
    assert said.endswith("2 schemas are in exported, 2 of them new\n")
    assert (await shop.run("export", "--to", "exported")).endswith("0 of them new\n")
    files = [f"exported/{name}" for name in ("OrderPlaced.avsc", "OrderPlaced.v2.avsc")]
    other = Shop(shop.folder, empty_database)
    assert "OrderPlaced version 2 is registered" in await other.run("register", *files)
    assert await other.run("list") == await shop.run("list")
    (shop.folder / files[0]).write_text(json.dumps(record("OrderPlaced")))
    with pytest.raises(EventspineError, match="holds another schema"):
        await shop.run("export", "--to", "exported")


GENERATED: list[Any] = [
    [
        ("total", "long"),
        ("note", ["null", "string"], None),
        ("name", "string", "nobody"),
        ("small", "int"),
        ("ratio", "double"),
        ("f", "float"),
    ],
    [
        ("id", logical("string", "uuid")),
        ("price", decimal(12, 2)),
        ("day", logical("int", "date")),
        ("time", logical("int", "time-millis")),
    ],
    [("at", MICROS), ("ms", MILLIS), ("maybe", ["null", MICROS], None), ("t", logical("long", "time-micros"))],
    [("size", enum("S", "L")), ("other", ["null", "Size"], None)],
    [("home", ADDRESS), ("work", ["null", "Address"], None), ("all", array("Address"))],
    [
        ("tags", array("string")),
        ("counts", values("long")),
        ("choice", ["null", "long", "string"], None),
        ("raw", "bytes"),
        ("yes", "boolean", True),
    ],
]


@pytest.mark.parametrize("fields", GENERATED, ids=range(len(GENERATED)))
@pytest.mark.parametrize("kind", ["--dataclass", "--pydantic"])
async def test_generated_classes_give_the_schema_back(shop: Shop, fields: Any, kind: str) -> None:
    """`generate` proves itself by differences(); here the classes also take every example, and give back what they were given."""
    file, made = shop.file(1, *fields, namespace="shop"), f"made_{next(_modules)}"
    await shop.run("generate", file, "-o", f"{made}.py", *([kind] if kind == "--pydantic" else []), dsn=False)
    make = "from_pydantic" if kind == "--pydantic" else "from_dataclass"
    module = shop.module(f"import {made}\nTYPE = EventType.{make}({made}.OrderPlaced, schema_version=2)\ndel V1\n")
    assert "1 class; no mistakes" in await shop.run("check", file, "--schemas", module, dsn=False)


async def test_what_a_class_can_not_say_is_refused(shop: Shop) -> None:
    with pytest.raises(EventspineError, match="class is a word of Python"):
        await shop.run("generate", shop.file(1, ("class", "string")), "-o", "made.py", dsn=False)
    assert not (shop.folder / "made.py").exists()


async def test_event_types_of_a_module_are_registered(shop: Shop) -> None:
    module = "eventspine.examples.accounts.events"
    assert (await shop.run("register", "--schemas", module)).count("is registered") == 5
    assert "MoneyDeposited version 5" in await shop.run("list")
    with pytest.raises(SettingsError, match=r"nothing to register: name .avsc files, or by --schemas"):
        await shop.run("register")
