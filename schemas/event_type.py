"""Event types: a name, a schema version, and the Avro schema that its data must fit."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import Field, dataclass, field, fields, is_dataclass, make_dataclass
from functools import cached_property
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, get_type_hints

import fastavro
from fastavro.schema import SchemaParseException, UnknownType

from .errors import SchemaError

__all__ = ["EventType", "load_event_types"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FILE_NAME = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(\.v(?P<version>[1-9][0-9]*))?\.avsc")


@dataclass(frozen=True)
class EventType:
    """One version of one kind of event.

    `definition` is the Avro schema as JSON text in one normal form (keys sorted, no white space), so that two texts that
    say the same have the same `fingerprint`. The Parsing Canonical Form of the Avro specification does not serve: it
    drops defaults and logical types, which change what bytes mean.
    """

    name: str
    schema_version: int
    definition: str

    @classmethod
    def from_schema(cls, schema: dict[str, Any], *, schema_version: int = 1) -> EventType:
        """Make an event type from an Avro record schema; the record's name is the event type's name.

        Raises:
            SchemaError: the schema is not a valid Avro record, or the version is below 1.
        """
        if not isinstance(schema, dict) or schema.get("type") != "record" or not isinstance(schema.get("name"), str):
            raise SchemaError("an event type's schema is an Avro record with a name")
        if schema_version < 1:
            raise SchemaError(f"{schema['name']}: schema versions count from 1, not {schema_version}")
        name = schema["name"].rpartition(".")[2]
        try:
            definition = json.dumps(schema, sort_keys=True, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as error:
            raise SchemaError(f"{name}: the schema is not JSON: {error}") from error
        event_type = cls(name, schema_version, definition)
        fault = _fault(event_type.parsed, frozenset())
        if fault:
            raise SchemaError(f"{name} version {schema_version}: invalid Avro schema: {fault}")
        fault = _privacy_fault(schema)
        if fault:
            raise SchemaError(f"{name} version {schema_version}: {fault}")
        return event_type

    @classmethod
    def from_avsc(cls, file: Path | Traversable) -> EventType:
        """Read `OrderPlaced.avsc` (version 1) or `OrderPlaced.v2.avsc`.

        Raises:
            SchemaError: the file's name or content is not as it should be.
        """
        match = _FILE_NAME.fullmatch(file.name)
        if match is None:
            raise SchemaError(f"{file}: name it like the event type: OrderPlaced.avsc, or OrderPlaced.v2.avsc for version 2")
        try:
            schema = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SchemaError(f"{file}: not JSON: {error}") from error
        event_type = cls.from_schema(schema, schema_version=int(match["version"] or 1))
        if event_type.name != match["name"]:
            raise SchemaError(f"{file}: the record inside is called {event_type.name!r}; the file's name must agree")
        return event_type

    @classmethod
    def from_dataclass(cls, model: Any, *, schema_version: int = 1) -> EventType:
        """Derive the schema from a dataclass; the class's name is the event type's name.

        Needs the extra `eventspine[dataclasses]`.

        Raises:
            SchemaError: a field's type has no Avro schema.
        """
        from dataclasses_avroschema import AvroModel

        if not isinstance(model, type) or not (is_dataclass(model) or issubclass(model, AvroModel)):
            raise SchemaError(f"{model!r} is no dataclass")
        try:
            if not issubclass(model, AvroModel):
                # The library does not resolve annotations that are strings (`from __future__ import annotations`).
                hints = get_type_hints(model, include_extras=True)
                resolved = [(each.name, hints[each.name], _copy_of(each)) for each in fields(model)]
                kept = {name: value for name, value in vars(model).items() if name in ("Meta", "__doc__", "__module__")}
                model = make_dataclass(model.__name__, resolved, bases=(AvroModel,), namespace=kept)
            schema = json.loads(model.avro_schema())
        except Exception as error:  # the library raises whatever its field classes raise
            raise SchemaError(f"{model.__name__}: no Avro schema can be derived: {error}") from error
        return cls.from_schema(schema, schema_version=schema_version)

    @cached_property
    def parsed(self) -> dict[str, Any]:
        """The schema as fastavro parsed it.

        Raises:
            SchemaError: it is not valid Avro.
        """
        try:
            parsed = fastavro.parse_schema(json.loads(self.definition), named_schemas={})
        except (SchemaParseException, UnknownType, RecursionError, ValueError, KeyError, TypeError) as error:
            raise SchemaError(f"{self.name} version {self.schema_version}: invalid Avro schema: {error}") from error
        assert isinstance(parsed, dict)
        return parsed

    @cached_property
    def holds_int(self) -> bool:
        """Whether the schema may hold a 32-bit integer somewhere."""
        return '"int"' in self.definition

    @cached_property
    def personal(self) -> dict[str, bool]:
        """The fields that are marked `"personal": true`, and whether each can be null; see `eventspine.schemas.privacy`."""
        members = json.loads(self.definition)["fields"]
        return {member["name"]: isinstance(member["type"], list) for member in members if member.get("personal") is True}

    @cached_property
    def subject(self) -> str:
        """The field that says whose the personal fields are; "" if there are none."""
        return str(json.loads(self.definition).get("subject", ""))

    @property
    def full_name(self) -> str:
        """The record's name with its namespace, as subjects use it."""
        return str(self.parsed["name"])

    @cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 of the definition: 32 bytes."""
        return hashlib.sha256(self.definition.encode()).digest()


def load_event_types(folder: Path | Traversable) -> list[EventType]:
    """Read every `.avsc` file of a folder, sorted by name and version.

    Raises:
        SchemaError: a file is wrong, or there is none.
    """
    types = [EventType.from_avsc(file) for file in folder.iterdir() if file.name.endswith(".avsc")]
    if not types:
        raise SchemaError(f"{folder}: no .avsc file in this folder")
    return sorted(types, key=lambda event_type: (event_type.name, event_type.schema_version))


def _fault(schema: Any, enclosing: frozenset[str]) -> str:
    """Return what is wrong with a parsed schema that fastavro lets pass and other Avro libraries refuse; "" if nothing.

    A type that contains itself is valid Avro, and refused all the same: fastavro reads and writes it by recursion in C
    without a limit, so that a few thousand levels (or as many hostile bytes) end the process by a segmentation fault.

    Source: https://avro.apache.org/docs/1.12.0/specification/ (names; unions)
    """
    if isinstance(schema, str):
        return f"{schema} contains itself; give it a bounded depth, or keep the tree as JSON in a string" * (schema in enclosing)
    if isinstance(schema, list):
        kinds = [_kind(branch) for branch in schema]
        if "union" in kinds or len(set(kinds)) < len(kinds):
            return f"a union holds a union, or one type twice: {kinds}"
        return next(filter(None, (_fault(branch, enclosing) for branch in schema)), "")
    name = schema.get("name", "")
    if schema["type"] in ("record", "enum", "fixed") and not all(map(_NAME.fullmatch, name.split("."))):
        return f"{name!r} is no name"
    if schema["type"] == "fixed" and (type(schema["size"]) is not int or schema["size"] < 0):
        return f"the size of {name} is {schema['size']!r}"
    if schema["type"] == "array" and _takes_no_bytes(schema["items"]):
        return "the items of an array take no bytes, so that a few bytes could claim 2**60 of them"
    if schema["type"] != "record":
        inner = schema.get("items", schema.get("values"))
        return _fault(inner, enclosing) if inner is not None else ""
    members = [member["name"] for member in schema["fields"]]
    if len(set(members)) < len(members) or not all(map(_NAME.fullmatch, members)):
        return f"the fields of {name} are repeated, or have no proper names: {members}"
    return next(filter(None, (_fault(member["type"], enclosing | {name}) for member in schema["fields"])), "")


def _privacy_fault(schema: dict[str, Any]) -> str:
    """Return what is wrong with the marks of personal fields, "" if nothing."""
    members = {member["name"]: member for member in schema["fields"]}
    marked = [member for member in members.values() if member.get("personal", False) is not False]
    if not marked:
        return ""
    subject = members.get(schema.get("subject"))
    if subject is None or subject["type"] != "string" or subject in marked:
        return (
            'a record with personal fields says whose they are: "subject": the name of a string field that is not personal itself'
        )
    for member in marked:
        if member["personal"] is not True or member["type"] not in ("string", ["null", "string"], ["string", "null"]):
            return (
                f'the personal field {member["name"]!r} must have "personal": true and the type "string" or ["null", "string"]; '
                "write other values as texts"
            )
    return ""


def _copy_of(each: Field[Any]) -> Any:
    return field(default=each.default, default_factory=each.default_factory, kw_only=each.kw_only, metadata=each.metadata)


def _takes_no_bytes(schema: Any) -> bool:
    if isinstance(schema, dict) and schema["type"] == "record":
        return all(_takes_no_bytes(member["type"]) for member in schema["fields"])
    return schema == "null" or (isinstance(schema, dict) and (schema["type"] == "null" or schema.get("size") == 0))


def _kind(branch: Any) -> str:
    if isinstance(branch, list):
        return "union"
    return str(branch.get("name", branch["type"])) if isinstance(branch, dict) else str(branch)
