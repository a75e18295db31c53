"""What the registry decides, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eventspine import EventType
from eventspine.schemas import SchemaError
from eventspine.schemas.compatibility import Level
from eventspine.schemas.registry_rules import (
    DEFAULT_LEVEL,
    Library,
    Offer,
    Reference,
    Refusal,
    Settings,
    Version,
    complaints,
    decide_registration,
    find_version,
    fingerprint,
    normal_form,
    offer_in,
    only_version,
    resolved,
    subject_to_delete,
    version_number,
    version_to_delete,
)

STREET = {"type": "record", "name": "shop.Street", "fields": [{"name": "name", "type": "string"}]}
ADDRESS = {
    "type": "record",
    "name": "Address",
    "namespace": "shop",
    "fields": [
        {"name": "street", "type": "Street"},
        {"name": "land", "type": {"type": "enum", "name": "Land", "symbols": ["A", "B"]}},
    ],
}
TO_STREET, TO_ADDRESS = Reference("shop.Street", "street", 1), Reference("shop.Address", "address", 1)


def at(subject: str, number: int, schema: Any, *references: Reference, schema_id: int = 0, deleted: bool = False) -> Version:
    definition = normal_form(Offer(json.dumps(schema)), normalize=False)
    return Version(subject, number, schema_id or number, definition, references, deleted)


LIBRARY: Library = {("street", 1): at("street", 1, STREET), ("address", 1): at("address", 1, ADDRESS, TO_STREET)}


def resolve(schema: Any, *references: Reference) -> Any:
    return resolved(json.dumps(schema), references, LIBRARY)


def refused(code: int) -> Any:
    class _Refused:
        def __enter__(self) -> None: ...

        def __exit__(self, kind: Any, error: Any, _: Any) -> bool:
            assert isinstance(error, Refusal), f"expected {code}, got {error!r}"
            assert error.code == code, f"expected {code}, got {error.code}: {error}"
            return True

    return _Refused()


def test_the_fingerprint_is_that_of_the_event_type() -> None:
    schema = {"type": "record", "name": "A", "fields": [{"name": "x", "type": "int"}]}
    offer = Offer(json.dumps(schema, indent=2))
    definition = normal_form(offer, normalize=False)
    event_type = EventType.from_schema(schema)
    assert (definition, fingerprint(definition, ())) == (event_type.definition, event_type.fingerprint)
    assert fingerprint(definition, (TO_STREET,)) != event_type.fingerprint


def test_references_are_put_in_where_they_stand_first() -> None:
    pair = {"type": "record", "name": "shop.Pair", "fields": [{"name": n, "type": "Address"} for n in "ab"]}
    first, second = resolve(pair, TO_ADDRESS)["fields"]
    street, land = first["type"]["fields"]
    assert (street["type"]["name"], land["type"]["name"], second["type"]) == ("shop.Street", "shop.Land", "shop.Address")
    both = resolve(pair, TO_STREET, TO_ADDRESS)  # one of them brings the other along
    assert both == resolve(pair, TO_ADDRESS)
    inner = {"type": "record", "name": "U", "fields": [{"name": "land", "type": "shop.Land"}]}  # defined inside another type
    assert resolve(inner, TO_ADDRESS)["fields"][0]["type"]["symbols"] == ["A", "B"]


def test_a_type_outside_all_namespaces_stays_outside() -> None:
    library = {("s", 1): at("s", 1, {"type": "fixed", "name": "Hash", "size": 2})}
    user = {"type": "record", "name": "a.User", "fields": [{"name": "x", "type": {"type": "array", "items": "a.Own"}}]}
    outer = {"type": "record", "name": "Top", "fields": [{"name": "u", "type": user}, {"name": "h", "type": "Hash"}]}
    found = resolved(json.dumps(outer), (Reference("Hash", "s", 1),), library)
    assert found["fields"][1]["type"] == {"type": "fixed", "name": "Hash", "size": 2}
    own = {"type": "fixed", "name": "Own", "namespace": "", "size": 2}
    inside = {"type": "record", "name": "a.Holder", "fields": [{"name": "x", "type": own}]}
    assert resolved(json.dumps(inside), (), {})["fields"][0]["type"] == own


def test_references_that_lead_nowhere_or_twice() -> None:
    with pytest.raises(SchemaError, match='No schema reference found for subject "gone" and version 1'):
        resolve("gone.Type", Reference("gone.Type", "gone", 1))
    with pytest.raises(SchemaError, match=r"shop\.Street is defined in the schema, and in one that it refers to"):
        resolve(STREET, TO_STREET)
    ring = {("a", 1): at("a", 1, "b.B", Reference("b.B", "b", 1)), ("b", 1): at("b", 1, "a.A", Reference("a.A", "a", 1))}
    assert resolved('"a.A"', (Reference("a.A", "a", 1),), ring) == "a.A"  # ends, and is refused as an unknown type


def test_how_a_schema_is_spelt_makes_no_difference() -> None:
    written_out = resolve(ADDRESS, TO_STREET)
    known = [at("address", 1, ADDRESS, TO_STREET)]
    for schema in (written_out, {**written_out, "name": "Address", "namespace": "shop"}):
        offer = Offer(json.dumps(schema))
        assert find_version(known, normal_form(offer, normalize=False), offer, LIBRARY) == known[0]
    documented = Offer(json.dumps({**written_out, "doc": "where"}))
    assert find_version(known, normal_form(documented, normalize=False), documented, LIBRARY) is None


def record(*more: dict[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": "A", "fields": [{"name": "x", "type": "int"}, *more]}


def decide(schema: Any, versions: list[Version], settings: Settings | None = None, **wanted: int) -> Version | None:
    offer = Offer(json.dumps(schema), **wanted)  # type: ignore[arg-type]
    return decide_registration("s", normal_form(offer, normalize=False), offer, versions, {}, settings or Settings())


NOTE: dict[str, Any] = {"name": "note", "type": "string", "default": ""}


def test_registration() -> None:
    versions = [at("s", 1, record()), at("s", 2, record(NOTE), deleted=True)]
    assert decide(record(), versions) == versions[0]
    assert decide(record(NOTE), versions) is None  # what is deleted may come again
    assert decide(record(NOTE), versions, version=3) is None
    for version in (2, 4):
        with refused(42201):
            decide(record(NOTE), versions, version=version)
    with refused(42201):
        decide({"fields": [{"name": "x", "type": {"type": "int"}}], "name": "A", "type": "record"}, versions, version=9)
    with refused(409):
        decide(record({"name": "y", "type": "int"}), versions)
    assert decide(record({"name": "y", "type": "int"}), versions, Settings(level="FORWARD")) is None
    assert decide(record({"name": "y", "type": "int"}), versions, Settings(general_level="NONE")) is None


@pytest.mark.parametrize("settings", [Settings(mode="READONLY"), Settings(mode="READWRITE", general_mode="READONLY_OVERRIDE")])
def test_registration_when_read_only(settings: Settings) -> None:
    versions = [at("s", 1, record())]
    assert decide(record(), versions, settings) == versions[0]
    with refused(42205):
        decide(record(NOTE), versions, settings)


def test_registration_when_importing() -> None:
    importing = Settings(general_mode="IMPORT")
    assert decide(record(), [], importing, schema_id=7) is None
    other = [at("s", 1, record())]
    assert decide({"type": "fixed", "name": "F", "size": 1}, other, importing, schema_id=7) is None  # nothing is compared
    for settings, wanted in [(importing, {}), (Settings(), {"schema_id": 7})]:
        with refused(42205):
            decide(record(NOTE), other, settings, **wanted)


def test_settings() -> None:
    assert Settings().level_in_scope == DEFAULT_LEVEL == Level.FULL_TRANSITIVE
    assert Settings(level="NONE", general_level="FULL").level_in_scope == "NONE"
    assert Settings(mode="READWRITE", general_mode="READONLY").mode_in_scope == "READWRITE"


def test_complaints_name_the_place() -> None:
    offer = Offer(json.dumps(record({"name": "y", "type": "int"})))
    (said,) = complaints(offer.text, offer, [at("s", 1, record())], {}, Level.BACKWARD)
    assert "y" in said
    assert complaints("7", Offer("7"), [], {}, Level.FULL, verbose=True)[0].startswith("Invalid schema: ")
    with refused(42201):
        complaints("7", Offer("7"), [], {}, Level.FULL)


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("2147483647", 2**31 - 1), ("latest", None), ("-1", None)])
def test_version_numbers(text: str, number: int | None) -> None:
    assert version_number(text) == number


@pytest.mark.parametrize("text", ["0", "-2", "2147483648", "1.5", "", "one", "1" * 5000, "¹", "٣"])
def test_refused_version_numbers(text: str) -> None:
    with refused(42202):
        version_number(text)


def test_deletion() -> None:
    versions = [at("s", 1, record(), deleted=True), at("s", 2, record(NOTE))]
    assert version_to_delete(versions, "s", "latest", permanent=False).version == 2
    assert version_to_delete(versions, "s", "1", permanent=True).version == 1
    with refused(40406):
        version_to_delete(versions, "s", "1", permanent=False)
    with refused(40407):
        version_to_delete(versions, "s", "2", permanent=True)
    assert [version.version for version in subject_to_delete(versions, "s", permanent=False)] == [2]
    with refused(40405):
        subject_to_delete(versions, "s", permanent=True)
    with refused(40404):
        subject_to_delete(versions[:1], "s", permanent=False)
    assert subject_to_delete(versions[:1], "s", permanent=True) == versions[:1]
    with refused(40401):
        subject_to_delete([], "s", permanent=False)
    with refused(40402):
        only_version(versions[:1], "s", "latest", deleted=True)  # the latest is never a deleted one


@pytest.mark.parametrize(
    ("reference", "fits"),
    [
        ({"name": "A", "subject": "s", "version": 1}, True),
        ({"name": "A", "subject": "s", "version": -1}, True),
        ({"name": "A", "subject": "s", "version": 0}, False),
        ({"name": "A", "subject": "s", "version": True}, False),
        ({"name": "A", "subject": "s", "version": "1"}, False),
        ({"name": "A", "subject": "s"}, False),
        ({"name": "A", "subject": "\ud800", "version": 1}, False),
        ({"name": "", "subject": "s", "version": 1}, False),
        (["A", "s", 1], False),
    ],
)
def test_references_in_a_request(reference: Any, fits: bool) -> None:
    body = json.dumps({"schema": '"int"', "references": [reference]}).encode()
    if fits:
        assert offer_in(body).references == (Reference("A", "s", reference["version"]),)
    else:
        with refused(42201):
            offer_in(body)
