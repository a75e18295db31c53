"""Schema files: the next version of one, all that are registered, and classes made from them."""

from __future__ import annotations

import importlib.util
import json
import keyword
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .schemas import EventType, SchemaError, SettingsError
from .schemas.diff import differences

__all__ = ["file_name", "generate_module", "newest_in", "next_schema", "write_schemas"]

_TYPE = re.compile(r"(?P<inner>.+?)(?P<mark>\?|\[\]|\{\})")
_DECIMAL = re.compile(r"decimal\((?P<precision>[0-9]+), ?(?P<scale>[0-9]+)\)")
_SHORT = {
    "uuid": {"type": "string", "logicalType": "uuid"},
    "date": {"type": "int", "logicalType": "date"},
    "time": {"type": "long", "logicalType": "time-micros"},
    "timestamp": {"type": "long", "logicalType": "timestamp-micros"},
}
_PRIMITIVES = ("boolean", "int", "long", "float", "double", "bytes", "string")


def file_name(event_type: str, version: int) -> str:
    """Return `OrderPlaced.avsc` for version 1, `OrderPlaced.v2.avsc` for version 2."""
    return f"{event_type}.avsc" if version == 1 else f"{event_type}.v{version}.avsc"


def newest_in(folder: Path, event_type: str) -> EventType | None:
    """Return the highest version of an event type among a folder's files, None if there is none."""
    found = [EventType.from_avsc(file) for file in folder.glob("*.avsc") if file.name.split(".")[0] == event_type]
    return max(found, key=lambda each: each.schema_version, default=None)


def next_schema(name: str, fields: Sequence[str], newest: EventType | None) -> dict[str, Any]:
    """Return the schema of a new event type, or of the next version of one: the newest, with fields that can be null.

    `fields` are like `total:long`, `note:string?`, `lines:string[]`, `counts:long{}`, `price:decimal(12,2)`, `at:timestamp`.

    Raises:
        SettingsError: a field can't be understood, or is there already.
    """
    schema: dict[str, Any] = newest.schema if newest else {"type": "record", "name": name, "fields": []}
    if newest and not fields:
        raise SettingsError(f"{name} version {newest.schema_version} is there: name the fields that the next version adds")
    for each in fields:
        field, _, written = each.partition(":")
        if not written or not field.isidentifier():
            raise SettingsError(f"{each!r}: write a field as NAME:TYPE, like total:long or note:string?")
        if any(field == member["name"] for member in schema["fields"]):
            raise SettingsError(f"{name} has a field {field!r} already")
        kind = _avro_type(written)
        if newest and not isinstance(kind, list):
            kind = ["null", kind]
        schema["fields"].append({"name": field, "type": kind} | ({"default": None} if isinstance(kind, list) else {}))
    return schema


def write_schemas(folder: Path, event_types: Iterable[EventType]) -> list[Path]:
    """Write event types as `.avsc` files, and return those that were new. A file that says the same is left as it is.

    Raises:
        SchemaError: a file is there and holds another schema.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for each in event_types:
        file = folder / file_name(each.name, each.schema_version)
        if not file.exists():
            file.write_text(json.dumps(_in_order(each.schema), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            written.append(file)
        elif EventType.from_avsc(file).fingerprint != each.fingerprint:
            raise SchemaError(f"{file} holds another schema than the registered one; move it away, or export to another folder")
    return written


def generate_module(event_types: Sequence[EventType], *, pydantic: bool = False) -> str:
    """Return a Python module of one class for each event type: `EventType.from_dataclass` (`from_pydantic`) gives its schema.

    Needs the extra `eventspine[dataclasses]`.

    Raises:
        SchemaError: a class can't say what a schema says; the places are named.
        SettingsError: the library that writes classes is not installed.
    """
    try:
        from dataclasses_avroschema import ModelGenerator, ModelType
    except ImportError as error:
        raise SettingsError('classes need one more package: pip install "eventspine[dataclasses]"') from error
    kind = ModelType.AVRODANTIC if pydantic else ModelType.DATACLASS
    for each in event_types:
        named = [member["name"] for member in each.schema["fields"] if keyword.iskeyword(member["name"])]
        if named:
            raise SchemaError(f"{each.name}: {', '.join(named)} is a word of Python, and can't name an attribute of a class")
    try:
        text: str = ModelGenerator().render_module(schemas=[each.schema for each in event_types], model_type=kind.value)
    except Exception as error:  # the library raises whatever its templates raise
        raise SchemaError(f"no classes can be written: {error!r}") from error
    _prove(text, event_types, pydantic)
    return text


def _prove(text: str, event_types: Sequence[EventType], pydantic: bool) -> None:
    """Import the module and derive the schemas again.

    Raises:
        SchemaError: one is not the same.
    """
    module = _imported(text)
    for each in event_types:
        model = getattr(module, each.name)
        again = (EventType.from_pydantic if pydantic else EventType.from_dataclass)(model, schema_version=each.schema_version)
        found = differences(each.schema, again.schema)
        if found:
            places = "; ".join(map(str, found[:5]))
            raise SchemaError(f"{each.name} version {each.schema_version}: a class can't say what the schema says: {places}")


def _imported(text: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "eventspine_generated.py"
        file.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise SchemaError(f"the classes that were written can't be imported: {error!r}") from error
        finally:
            del sys.modules[file.stem]
        return module


def _in_order(schema: Any) -> Any:
    """Put the keys of a schema in the order in which people write them."""
    if isinstance(schema, list):
        return [_in_order(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    field = ("fields" not in schema and "default" in schema) or isinstance(schema.get("type"), (dict, list))
    first = ("name", "type") if field else ("type", "name", "namespace")
    last = ("symbols", "items", "values", "fields", "default")
    keys = [*first, *(key for key in schema if key not in first + last), *last]
    kept = {"type": _in_order, "items": _in_order, "values": _in_order, "fields": _in_order}
    return {key: kept.get(key, lambda value: value)(schema[key]) for key in keys if key in schema}


def _avro_type(written: str) -> Any:
    if written in _PRIMITIVES:
        return written
    if written in _SHORT:
        return dict(_SHORT[written])
    decimal = _DECIMAL.fullmatch(written)
    if decimal:
        precision, scale = int(decimal["precision"]), int(decimal["scale"])
        return {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale}
    marked = _TYPE.fullmatch(written)
    if marked is None:
        known = ", ".join([*_PRIMITIVES, *_SHORT, "decimal(12,2)"])
        raise SettingsError(f"{written!r} is no type; known are {known}, and TYPE? (can be null), TYPE[] and TYPE{{}}")
    inner = _avro_type(marked["inner"])
    if marked["mark"] == "?":
        return inner if isinstance(inner, list) else ["null", inner]
    return {"type": "array", "items": inner} if marked["mark"] == "[]" else {"type": "map", "values": inner}
