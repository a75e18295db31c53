"""The defaults of an Avro schema as Python values.

A schema writes them as JSON: bytes as a text of the code points 0 to 255, a timestamp as a number. fastavro hands that out as it
stands, where a reader of the event expects `Decimal` and `datetime`.

Source: https://avro.apache.org/docs/1.12.0/specification/#complex-types (table "field default values")
"""

from __future__ import annotations

import copy
import json
from typing import Any

import fastavro
from fastavro.read import LOGICAL_READERS

__all__ = ["default_value", "parse_with_defaults"]


def default_value(schema: Any, default: Any, named: dict[str, Any]) -> Any:
    """Return the Python value of a field's default. `schema` and `named` (definitions by name) are as fastavro parses them."""
    if isinstance(schema, list):
        return default_value(schema[0], default, named)
    if isinstance(schema, str) and schema in named:
        schema = named[schema]
    kind = schema if isinstance(schema, str) else schema["type"]
    if isinstance(kind, (dict, list)):
        return default_value(kind, default, named)
    match kind:
        case "bytes" | "fixed":
            value: Any = default.encode("latin-1")
        case "float" | "double":
            value = float(default)
        case "array":
            value = [default_value(schema["items"], each, named) for each in default]
        case "map":
            value = {key: default_value(schema["values"], each, named) for key, each in default.items()}
        case "record" | "error":
            value = {
                field["name"]: default_value(field["type"], default.get(field["name"], field.get("default")), named)
                for field in schema["fields"]
            }
        case _:
            value = default
    convert = None if isinstance(schema, str) else LOGICAL_READERS.get(f"{kind}-{schema.get('logicalType')}")
    return value if convert is None else convert(value, schema, None)


def parse_with_defaults(definition: str) -> dict[str, Any]:
    """Parse a schema for use as a reader's schema, with Python values as defaults: fastavro gives them out as they stand there.

    Who reads by it copies what it reads, where a default can be changed (a list, a dict).
    """
    named: dict[str, Any] = {}
    parsed = fastavro.parse_schema(json.loads(definition), named_schemas=named)
    assert isinstance(parsed, dict)
    original = copy.deepcopy(named)
    seen: set[int] = set()
    for each in [parsed, *named.values()]:
        _replace(each, original, seen)
    return parsed


def _replace(schema: Any, named: dict[str, Any], seen: set[int]) -> None:
    if isinstance(schema, list):
        for branch in schema:
            _replace(branch, named, seen)
    elif isinstance(schema, dict) and id(schema) not in seen:
        seen.add(id(schema))
        for field in schema.get("fields", ()):
            if "default" in field and id(field) not in seen:
                seen.add(id(field))
                field["default"] = default_value(field["type"], field["default"], named)
            _replace(field["type"], named, seen)
        for inner in ("items", "values", "type"):
            if isinstance(schema.get(inner), (dict, list)):
                _replace(schema[inner], named, seen)
