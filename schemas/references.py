"""Schemas that refer to named types which are defined elsewhere: the definition is put where the name stands first."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from .errors import SchemaError

__all__ = ["inline_types", "load_types"]

_NAMED = ("record", "error", "enum", "fixed")


def inline_types(schema: Any, types: Iterable[dict[str, Any]]) -> Any:
    """Return a schema in which each name that it does not define itself is replaced by its definition among `types`.

    Only the first place of a name gets the definition, as Avro wants it; those behind it keep the name. Names are full, or in the
    namespace that encloses them.

    Source: https://avro.apache.org/docs/1.12.0/specification/#names
    """
    available = {_full_name(each, ""): each for each in types}
    return _inline(schema, "", available, set())


def load_types(folder: Path | Traversable) -> list[dict[str, Any]]:
    """Read the named types of a folder, one in each `.avsc` file; [] if there is no such folder.

    Raises:
        SchemaError: a file does not define a named type.
    """
    if not folder.is_dir():
        return []
    types = []
    for file in sorted(folder.iterdir(), key=lambda each: each.name):
        if not file.name.endswith(".avsc"):
            continue
        try:
            schema = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise SchemaError(f"{file}: not JSON: {error}") from error
        if not isinstance(schema, dict) or schema.get("type") not in _NAMED or not isinstance(schema.get("name"), str):
            raise SchemaError(f"{file}: a shared type is a record, enum or fixed with a name")
        types.append(schema)
    return types


def _inline(schema: Any, namespace: str, available: dict[str, dict[str, Any]], defined: set[str]) -> Any:
    if isinstance(schema, list):
        return [_inline(branch, namespace, available, defined) for branch in schema]
    if isinstance(schema, str):
        name = schema if "." in schema or not namespace else f"{namespace}.{schema}"
        for each in (name, schema):
            if each in available and each not in defined:
                return _inline({**available[each], "name": each}, "", available, defined)
        return schema
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") in _NAMED and isinstance(schema.get("name"), str):
        name = _full_name(schema, namespace)
        defined.add(name)
        namespace = name.rpartition(".")[0]
    inlined = dict(schema)
    for key in ("items", "values"):
        if key in schema:
            inlined[key] = _inline(schema[key], namespace, available, defined)
    if isinstance(schema.get("type"), (dict, list)):
        inlined["type"] = _inline(schema["type"], namespace, available, defined)
    if isinstance(schema.get("fields"), list):
        inlined["fields"] = [
            {**field, "type": _inline(field.get("type"), namespace, available, defined)} if isinstance(field, dict) else field
            for field in schema["fields"]
        ]
    return inlined


def _full_name(schema: dict[str, Any], enclosing: str) -> str:
    name = str(schema["name"])
    namespace = schema.get("namespace", enclosing)
    return name if "." in name or not namespace else f"{namespace}.{name}"
