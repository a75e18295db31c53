"""Whether a schema in a registry is the one that is pinned, in which order schemas go there, and what is shown of a URL."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eventspine import SettingsError
from eventspine.schemas.registry_client import RegistryClient, RegistrySchema
from eventspine.schemas.registry_rules import Reference, Version
from eventspine.schemas.registry_sync import Pin, difference, in_order
from eventspine.settings import Settings, load_settings
from tests.event_types import record

OURS = record(
    "Odd",
    ("a", "double", 1.0),
    ("b", {"type": "string"}),
    (
        "c",
        {
            "type": "array",
            "items": {"type": "enum", "name": "E", "symbols": ["A"], "namespace": "other", "aliases": ["other.Old"]},
        },
    ),
    ("d", ["null", "other.E"], None),
    ("e", "int"),
    namespace="x.y",
    aliases=["x.y.Older", "z.Oldest"],
)
OURS["fields"][0] |= {"order": "ascending", "aliases": []}
OURS["fields"][4] |= {"personal": True}
# What Java's Avro 1.12.1 makes of it, and with it Confluent's registry.
JAVA = (
    '{"type":"record","name":"Odd","namespace":"x.y","fields":[{"name":"a","type":"double","default":1.0},{"name":"b",'
    '"type":"string"},{"name":"c","type":{"type":"array","items":{"type":"enum","name":"E","namespace":"other","symbols":["A"],'
    '"aliases":["Old"]}}},{"name":"d","type":["null","other.E"],"default":null},{"name":"e","type":"int","personal":true}],'
    '"aliases":["Older","z.Oldest"]}'
)


def theirs(definition: str, kind: str = "AVRO") -> RegistrySchema:
    return RegistrySchema(kind, definition, (), {})


def test_the_same_schema_in_other_words() -> None:
    pin = Pin(7, json.dumps(OURS, sort_keys=True))
    assert difference(pin, {}, theirs(JAVA)) is None
    assert difference(pin, {}, theirs(JAVA.replace("1.0", "1"))) is None  # one number for JavaScript's libraries


@pytest.mark.parametrize(
    ("ours", "other"),
    [
        ('"default":1.0', '"default":1.5'),
        ('"personal":true', '"personal":1'),
        ('"symbols":["A"]', '"symbols":["A","B"]'),
        ('"Older"', '"Other"'),
        ('"name":"e"', '"order":"ignore","name":"e"'),
        ('"namespace":"x.y"', '"namespace":"x"'),
    ],
)
def test_another_schema(ours: str, other: str) -> None:
    assert ours in JAVA
    fault = difference(Pin(7, json.dumps(OURS), event_types=(("Odd", 3),)), {}, theirs(JAVA.replace(ours, other)))
    assert fault is not None
    assert fault.said.startswith("the id 7 is Odd version 3 here, and another schema (x.")


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (None, "the id 7 (x.y.Odd) is missing there; run `eventspine registry push`"),
        (theirs("message A {}", "PROTOBUF"), "here, and a schema of the type PROTOBUF there"),
        (theirs("nonsense"), "here, and not JSON"),
        (theirs('"string"'), "here, and another schema there"),
    ],
)
def test_no_such_schema(schema: RegistrySchema | None, said: str) -> None:
    fault = difference(Pin(7, json.dumps(OURS)), {}, schema)
    assert fault is not None
    assert said in fault.said


def test_references_are_resolved_on_either_side() -> None:
    address: dict[str, Any] = record("shop.Address", ("street", "string"))
    customer = json.dumps(record("shop.Customer", ("home", "shop.Address")))
    whole = json.dumps(record("shop.Customer", ("home", address)))
    reference = Reference("shop.Address", "addresses", 1)
    library = {("addresses", 1): Version("addresses", 1, 3, json.dumps(address))}
    referring = Pin(7, customer, (reference,))
    assert difference(referring, library, theirs(whole)) is None
    assert difference(Pin(7, whole), {}, RegistrySchema("AVRO", customer, (reference,), library)) is None
    fault = difference(Pin(7, whole), {}, RegistrySchema("AVRO", customer, (reference,), {}))
    assert fault is not None
    assert "No schema reference found" in fault.said


def test_what_is_referred_to_goes_first() -> None:
    def pin(schema_id: int, *needed: int) -> Pin:
        references = tuple(Reference(f"R{each}", f"s{each}", 1) for each in needed)
        return Pin(schema_id, '"string"', references, listed=((f"s{schema_id}", 1),))

    pins = [pin(1, 3, 4), pin(2), pin(3, 4), pin(4), pin(5, 9)]
    assert [each.schema_id for each in in_order(pins)] == [4, 3, 1, 2, 5]
    circle = [pin(1, 2), pin(2, 1)]
    assert sorted(each.schema_id for each in in_order(circle)) == [1, 2]


def test_places() -> None:
    definition = json.dumps(record("Odd", namespace="x"))
    listed = (("events.A-x.Odd", 1),)
    assert Pin(1, definition).places == [("x.Odd", 0)]
    assert Pin(1, definition, listed=listed).places == [*listed]
    assert Pin(1, definition, event_types=(("Odd", 1),), listed=listed).places == [*listed, ("x.Odd", 0)]
    assert Pin(1, definition, event_types=(("Odd", 1),), listed=(("x.Odd", 4),)).places == [("x.Odd", 4)]
    assert Pin(1, '"string"').places == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://alice:secret@host:8081/", "http://host:8081"),
        ("https://host/contexts/.orders", "https://host/contexts/.orders"),
        ("http://a:s@one:1, http://a:s@[::1]:2", "http://one:1,http://[::1]:2"),
    ],
)
def test_credentials_are_not_shown(url: str, shown: str) -> None:
    assert RegistryClient(url).url == shown


@pytest.mark.parametrize("url", ["host:8081", "ftp://host", "http://", "http://host:port"])
def test_no_url(url: str) -> None:
    with pytest.raises(SettingsError, match="registry_url is no URL"):
        RegistryClient(url)


def test_a_user_set_twice_is_refused() -> None:
    with pytest.raises(SettingsError, match="set twice"):
        RegistryClient("http://alice:secret@host", user="alice")


def test_the_password_is_shown_nowhere() -> None:
    assert "hunter2" not in repr(Settings(registry_password="hunter2"))
    with pytest.raises(SettingsError) as refused:
        load_settings({"registry_password": 4711}, {})
    assert "4711" not in str(refused.value)
