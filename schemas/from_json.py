"""JSON to the Python values that Avro's writer takes, by the schema: the way back of what `json_of` writes."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from functools import lru_cache
from typing import Any
from uuid import UUID

from .event_type import EventType
from .shape import Shape, shape_of

__all__ = ["data_from_json"]


def data_from_json(event_type: EventType, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return decoded JSON with texts turned into dates, times, decimals, UUIDs and bytes where the schema has those.

    What does not look as it should is left as it is: the codec refuses it, and names the field.
    """
    converted = _value(data, _shape(event_type.definition))
    assert isinstance(converted, dict)
    return converted


@lru_cache(maxsize=1000)
def _shape(definition: str) -> Shape:
    return shape_of(json.loads(definition))


def _value(value: Any, shape: Shape) -> Any:
    if shape.kind == "union":
        return _of_branches(value, shape.branches)
    if isinstance(value, Mapping):
        if shape.kind == "map" and shape.inner is not None:
            return {name: _value(each, shape.inner) for name, each in value.items()}
        members = {member.name: member.shape for member in shape.members}
        return {name: _value(each, members[name]) if name in members else each for name, each in value.items()}
    if isinstance(value, list) and shape.kind == "array" and shape.inner is not None:
        return [_value(each, shape.inner) for each in value]
    if isinstance(value, str):
        return _text(value, shape)
    return float(value) if type(value) is int and shape.kind in ("float", "double") and abs(value) < 2**53 else value


def _of_branches(value: Any, branches: list[Shape]) -> Any:
    if isinstance(value, str) and any(each.kind in ("string", "enum") and not each.logical for each in branches):
        return value
    for branch in branches:
        converted = _value(value, branch)
        if converted is not value and converted != value:
            return converted
    return value


def _text(value: str, shape: Shape) -> Any:
    try:
        match shape.logical:
            case "uuid":
                return UUID(value)
            case "decimal":
                return Decimal(value)
            case "date":
                return date.fromisoformat(value)
            case "time-millis" | "time-micros":
                return time.fromisoformat(value)
            case logical if logical.startswith(("timestamp-", "local-timestamp-")):
                return datetime.fromisoformat(value)
        return base64.b64decode(value, validate=True) if shape.kind in ("bytes", "fixed") else value
    except (ValueError, ArithmeticError):
        return value
