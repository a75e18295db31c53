"""Event types: a name, a schema version, and the Avro schema that its data must fit."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass, make_dataclass, replace
from functools import cached_property
from importlib.resources.abc import Traversable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import fastavro
from fastavro.schema import SchemaParseException, UnknownType

from .avro_rules import MAX_DEFINITION_BYTES, check_schema, parse_definition
from .defaults import default_value
from .errors import SchemaError
from .references import inline_types, load_types

__all__ = ["EventType", "load_event_types"]

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
    model: type | None = field(default=None, compare=False, repr=False)
    """The dataclass or pydantic model that it was made from."""

    @classmethod
    def from_schema(cls, schema: dict[str, Any], *, schema_version: int = 1, types: Sequence[dict[str, Any]] = ()) -> EventType:
        """Make an event type from an Avro record schema; the record's name is the event type's name.

        `types` are the definitions of named types that it refers to and does not define itself: each is put in its place.

        Raises:
            SchemaError: the schema is not a valid Avro record, or the version is below 1.
        """
        if not isinstance(schema, dict) or schema.get("type") != "record" or not isinstance(schema.get("name"), str):
            raise SchemaError("an event type's schema is an Avro record with a name")
        if schema_version < 1:
            raise SchemaError(f"{schema['name']}: schema versions count from 1, not {schema_version}")
        name = schema["name"].rpartition(".")[2]
        try:
            schema = inline_types(schema, types) if types else schema
            check_schema(schema)
            definition = json.dumps(schema, sort_keys=True, separators=(",", ":"))
        except SchemaError as error:
            raise SchemaError(f"{name} version {schema_version}: invalid Avro schema: {error}") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise SchemaError(f"{name}: the schema is not JSON: {error}") from error
        event_type = cls(name, schema_version, definition)
        _ = event_type.parsed  # fastavro has its rules too
        fault = _privacy_fault(schema)
        if fault:
            raise SchemaError(f"{name} version {schema_version}: {fault}")
        return event_type

    @classmethod
    def from_avsc(cls, file: Path | Traversable, *, types: Sequence[dict[str, Any]] | None = None) -> EventType:
        """Read `OrderPlaced.avsc` (version 1) or `OrderPlaced.v2.avsc`.

        Named types that it refers to are looked for in the folder `types/` beside the file, unless `types` are given.

        Raises:
            SchemaError: the file's name or content is not as it should be.
        """
        match = _FILE_NAME.fullmatch(file.name)
        if match is None:
            raise SchemaError(f"{file}: name it like the event type: OrderPlaced.avsc, or OrderPlaced.v2.avsc for version 2")
        try:
            with file.open("rb") as content:
                schema = parse_definition(content.read(MAX_DEFINITION_BYTES + 1))
        except SchemaError as error:
            raise SchemaError(f"{file}: {error}") from error
        if types is None:
            types = load_types(file.parent / "types") if isinstance(file, Path) else ()
        event_type = cls.from_schema(schema, schema_version=int(match["version"] or 1), types=types)
        if event_type.name != match["name"]:
            raise SchemaError(f"{file}: the record inside is called {event_type.name!r}; the file's name must agree")
        return event_type

    @classmethod
    def from_dataclass(cls, model: type, *, schema_version: int = 1) -> EventType:
        """Derive the schema from a dataclass; the class's name is the event type's name.

        Needs the extra `eventspine[dataclasses]`.

        Raises:
            SchemaError: a field's type has no Avro schema.
        """
        from dataclasses_avroschema import AvroModel

        if not isinstance(model, type) or not (is_dataclass(model) or issubclass(model, AvroModel)):
            raise SchemaError(f"{model!r} is no dataclass")
        return cls._derived(model, AvroModel, schema_version)

    @classmethod
    def from_pydantic(cls, model: type, *, schema_version: int = 1) -> EventType:
        """Derive the schema from a pydantic model; the class's name is the event type's name.

        Needs the extra `eventspine[dataclasses]` and pydantic.

        Raises:
            SchemaError: a field's type has no Avro schema.
        """
        from dataclasses_avroschema.pydantic import AvroBaseModel
        from pydantic import BaseModel

        if not isinstance(model, type) or not issubclass(model, BaseModel):
            raise SchemaError(f"{model!r} is no pydantic model")
        return cls._derived(model, AvroBaseModel, schema_version)

    @classmethod
    def _derived(cls, model: type, base: Any, schema_version: int) -> EventType:
        try:
            schema = json.loads(_with_schema(model, base).avro_schema())
        except Exception as error:  # the library raises whatever its field classes raise
            raise SchemaError(f"{model.__name__}: no Avro schema can be derived: {error}") from error
        return replace(cls.from_schema(schema, schema_version=schema_version), model=model)

    @property
    def schema(self) -> dict[str, Any]:
        """The Avro schema as JSON values; a new copy each time."""
        schema: dict[str, Any] = json.loads(self.definition)
        return schema

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The fields whose defaults fastavro can't write as the schema states them: bytes, fixed and what is made of them."""
        named: dict[str, Any] = self.parsed["__named_schemas"]
        return {
            member["name"]: default_value(member["type"], member["default"], named)
            for member in self.parsed["fields"]
            if "default" in member and isinstance(member["default"], (str, list, dict)) and _holds_bytes(member["type"], named)
        }

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

    Named types that several of them share lie in its folder `types/`.

    Raises:
        SchemaError: a file is wrong, or there is none.
    """
    shared = load_types(folder / "types")
    types = [EventType.from_avsc(file, types=shared) for file in folder.iterdir() if file.name.endswith(".avsc")]
    if not types:
        raise SchemaError(f"{folder}: no .avsc file in this folder")
    return sorted(types, key=lambda event_type: (event_type.name, event_type.schema_version))


def _privacy_fault(schema: dict[str, Any]) -> str:
    """Return what is wrong with the marks of personal fields, "" if nothing."""
    members = {member["name"]: member for member in schema["fields"]}
    marked = [member for member in members.values() if member.get("personal", False) is not False]
    if not marked:
        return ""
    subject = members.get(str(schema.get("subject")))
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


def _with_schema(model: type, base: Any, made: dict[type, Any] | None = None) -> Any:
    """Return the class with the library's base, which derives the schema; and so for the classes of its fields."""
    if issubclass(model, base):
        return model
    made = {} if made is None else made
    if model in made:
        if made[model] is None:
            raise SchemaError(f"{model.__name__} contains itself")
        return made[model]
    made[model] = None
    if not is_dataclass(model):
        from pydantic import create_model

        members: Any = model
        typed: Any = {name: (_resolved(each.annotation, base, made), each) for name, each in members.model_fields.items()}
        made[model] = create_model(model.__name__, __base__=base, __doc__=model.__doc__, **typed)
        return made[model]
    # The library does not resolve annotations that are strings (`from __future__ import annotations`).
    hints = get_type_hints(model, include_extras=True)
    for each in fields(model):  # the library writes others as UTF-8, and Avro reads them as Latin-1
        if isinstance(each.default, bytes) and not each.default.isascii():
            raise SchemaError(f"the default of {each.name} is not ASCII; write this schema as an .avsc file")
    resolved = [(each.name, _resolved(hints[each.name], base, made), _copy_of(each)) for each in fields(model)]
    kept = {name: value for name, value in vars(model).items() if name in ("Meta", "__doc__", "__module__")}
    made[model] = make_dataclass(model.__name__, resolved, bases=(base,), namespace=kept)
    return made[model]


def _resolved(hint: Any, base: Any, made: dict[type, Any]) -> Any:
    """Return an annotation in which each plain dataclass has the library's base."""
    if isinstance(hint, type) and not get_args(hint):
        return _with_schema(hint, base, made) if is_dataclass(hint) or hasattr(hint, "model_fields") else hint
    inner = get_args(hint)
    if not inner or get_origin(hint) in (Literal, Annotated):
        return hint
    replaced = tuple(_resolved(each, base, made) for each in inner)
    if replaced == inner:
        return hint
    return Union[replaced] if isinstance(hint, UnionType) or get_origin(hint) is Union else get_origin(hint)[replaced]  # noqa: UP007


def _holds_bytes(schema: Any, named: dict[str, Any], seen: frozenset[str] = frozenset()) -> bool:
    if isinstance(schema, list):
        return _holds_bytes(schema[0], named, seen) if schema else False
    if isinstance(schema, str):
        return schema == "bytes" or (
            schema in named and schema not in seen and _holds_bytes(named[schema], named, seen | {schema})
        )
    if schema["type"] in ("bytes", "fixed"):
        return True
    inner = [schema[key] for key in ("items", "values") if key in schema] + [each["type"] for each in schema.get("fields", ())]
    return any(_holds_bytes(each, named, seen) for each in inner)


def _copy_of(each: Field[Any]) -> Any:
    return field(default=each.default, default_factory=each.default_factory, kw_only=each.kw_only, metadata=each.metadata)
