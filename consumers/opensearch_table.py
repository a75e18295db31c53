"""Tables as OpenSearch has them: mappings, documents, and what a change makes of one. No I/O.

Whatever passes here, OpenSearch takes: it checks a document only when others of the same batch may be written already.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from ..schemas import ProjectionError
from .folding import Refused
from .table import Key, Table, Write

__all__ = ["DELETED", "MARKS", "Change", "Columns", "by_key", "document_id"]

MARKS: Final = "@eventspine"
"""The field in which a document says which records were applied to it. No column can be called so."""
DELETED: Final = "@deleted"
"""When the row was deleted: the document stays for a while, without columns, and is seen by no search."""

_ID_BYTES: Final = 512  # OpenSearch's limit
_JSON_DEPTH: Final = 100
_IGNORE_ABOVE: Final = 8191  # characters; a term has 32,766 bytes at most
_TYPE = re.compile(r"([a-z][a-z0-9_ ]*?)(?:\((\d+)(?:,(\d+))?\))?")
_INTEGERS: Final = {
    **dict.fromkeys(("smallint", "int2"), ("short", 15)),
    **dict.fromkeys(("integer", "int", "int4"), ("integer", 31)),
    **dict.fromkeys(("bigint", "int8"), ("long", 63)),
}
_EXACT: Final = Context(prec=2000, rounding=ROUND_HALF_UP)

_encode = msgspec.json.Encoder().encode

Wire = Any
"""A value as it stands in a document."""


class Change(NamedTuple):
    """What one write does to one row."""

    kind: str
    assigned: tuple[str, ...]
    added: tuple[str, ...]
    values: tuple[Any, ...]


class _Column(NamedTuple):
    mapping: dict[str, Any]
    encode: Callable[[Any], Wire]
    number: Callable[[Wire], Any] | None = None  # to what can be added to


class Columns:
    """One table's columns.

    Raises:
        ProjectionError: a type has no counterpart.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._columns = {name: _column(table, name, declared) for name, declared in table.columns.items()}

    @property
    def mapping(self) -> dict[str, Any]:
        """The index's properties."""
        ours = {MARKS: {"type": "object", "enabled": False}, DELETED: {"type": "date"}}
        return {name: column.mapping for name, column in self._columns.items()} | ours

    def id_of(self, key: Key) -> str:
        """Return the id of a row's document.

        Raises:
            Refused: a value does not fit its column.
        """
        return document_id([self._encoded(column, value) for column, value in zip(self.table.key, key, strict=True)])

    def apply(self, row: Mapping[str, Wire] | None, key: Key, change: Change) -> dict[str, Wire] | None:
        """Return what a change makes of a row: its columns that are not NULL.

        Raises:
            Refused: a value does not fit its column, or a row that is inserted is there.
        """
        kind, assigned, added, values = change
        if kind == "delete":
            return None
        if row is None:
            if kind == "update":
                return None
            changed = {column: self._encoded(column, value) for column, value in zip(self.table.key, key, strict=True)}
        else:
            if kind == "insert":
                raise Refused(f"table {self.table.name} has a row with this key already, which is inserted")
            changed = dict(row)
        for column, value in zip(assigned, values, strict=False):
            if value is None:
                changed.pop(column, None)
            else:
                changed[column] = self._encoded(column, value)
        for column, value in zip(added, values[len(assigned) :], strict=True):
            if value is None:
                changed.pop(column, None)
            else:
                changed[column] = self._sum(column, changed.get(column), value)
        return changed

    def _sum(self, name: str, before: Wire, value: Any) -> Wire:
        encoded, number = self._encoded(name, value), self._columns[name].number
        if number is None:
            raise Refused(f"column {name} of table {self.table.name} is {self.table.columns[name]}, which can't be added to")
        if before is None:
            return encoded
        one, other = number(before), number(encoded)
        return self._encoded(name, _EXACT.add(one, other) if isinstance(one, Decimal) else one + other)

    def _encoded(self, name: str, value: Any) -> Wire:
        try:
            return self._columns[name].encode(value)
        except (ValueError, TypeError, ArithmeticError, AttributeError, struct.error) as error:
            raise Refused(
                f"a value does not fit its column: {name} of table {self.table.name} is {self.table.columns[name]}, and got "
                f"{type(value).__name__}: {error}"
            ) from error


def by_key(writes: Iterable[Write]) -> dict[tuple[str, Key], list[Change]]:
    """Return the changes of each row, by table and key, in order."""
    changes: dict[tuple[str, Key], list[Change]] = {}
    for table, kind, assigned, added, rows in writes:
        keys = len(table.key)
        for row in rows:
            changes.setdefault((table.name, row[:keys]), []).append(Change(kind, assigned, added, row[keys:]))
    return changes


def document_id(parts: list[Wire]) -> str:
    """Return an id that no other parts have: the text itself, or all as JSON; what is too long, or looks like it, as a digest."""
    text = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else _encode(parts if len(parts) > 1 else parts[0]).decode()
    if not text or text[0] == "#" or len(text.encode()) > _ID_BYTES:
        return "#" + hashlib.sha256(text.encode()).hexdigest()
    return text


def _column(table: Table, name: str, declared: str) -> _Column:
    match = _TYPE.fullmatch(declared)
    kind, *numbers = match.groups() if match else ("", None, None)
    length, scale = (int(number) if number else None for number in numbers)
    if name in table.key and kind in ("json", "jsonb"):
        raise ProjectionError(f"table {table.name}: {name} is in the key, and {declared} can't be: take text")
    if kind in _INTEGERS:
        opensearch, bits = _INTEGERS[kind]
        return _Column({"type": opensearch}, lambda value: _integer(value, bits), int)
    if kind == "numeric" or kind == "decimal":
        places = None if length is None else scale or 0
        mapping: dict[str, Any] = {"type": "keyword", "ignore_above": _IGNORE_ABOVE}
        if length is not None and length <= 18:
            mapping = {"type": "scaled_float", "scaling_factor": float(10 ** (scale or 0))}
        return _Column(mapping, lambda value: _numeric(value, length, places), Decimal)
    if kind in ("text", "varchar", "character varying"):
        return _Column({"type": "keyword", "ignore_above": _IGNORE_ABOVE}, lambda value: _text(value, length))
    if kind not in _SIMPLE or numbers != [None, None]:
        raise ProjectionError(
            f"table {table.name}: column {name} is {declared}, which OpenSearch has no type for; there are text, varchar, "
            "smallint, integer, bigint, numeric, real, double precision, boolean, date, timestamp, timestamptz, uuid, bytea, "
            "json, jsonb"
        )
    return _SIMPLE[kind]


def _integer(value: Any, bits: int) -> int:
    if not isinstance(value, int):
        raise TypeError("an integer is needed")
    if not -(1 << bits) <= value < 1 << bits:
        raise ValueError("it is out of range")
    return int(value)


def _numeric(value: Any, precision: int | None, scale: int | None) -> str:
    if not isinstance(value, (Decimal, int, float)) or isinstance(value, bool):
        raise TypeError("a number is needed")
    number = value if isinstance(value, Decimal) else Decimal(str(value))
    if not number.is_finite():
        raise ValueError("it is not finite")
    if scale is None:
        return format(number.normalize(_EXACT) + 0, "f")
    try:
        rounded = number.quantize(Decimal(1).scaleb(-scale), context=_EXACT)
    except InvalidOperation as error:
        raise ValueError("it is out of range") from error
    if precision is not None and rounded.adjusted() >= precision - scale and rounded:
        raise ValueError("it is out of range")
    return format(rounded or abs(rounded), "f")


def _text(value: Any, length: int | None) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is needed")
    if length is not None and len(value) > length:
        raise ValueError("it is too long")
    value.encode()  # no lone surrogates
    return value


def _real(value: Any) -> float:
    return float(struct.unpack("<f", struct.pack("<f", _double(value)))[0])


def _double(value: Any) -> float:
    if not isinstance(value, (int, float)):
        raise TypeError("a number is needed")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("it is not finite")
    return number + 0.0  # -0.0 is 0.0


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("a boolean is needed")
    return value


def _date(value: Any) -> str:
    if not isinstance(value, date):
        raise TypeError("a date is needed")
    return (value.date() if isinstance(value, datetime) else value).isoformat()


def _timestamp(value: Any) -> str:
    if not isinstance(value, datetime) or value.tzinfo is not None:
        raise TypeError("a datetime without time zone is needed")
    return value.isoformat()


def _timestamptz(value: Any) -> str:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise TypeError("a datetime with time zone is needed")
    return value.astimezone(UTC).isoformat()


def _uuid(value: Any) -> str:
    return str(value if isinstance(value, UUID) else UUID(value))


def _bytea(value: Any) -> str:
    return base64.b64encode(value).decode()


def _json(value: Any) -> msgspec.Raw:
    _check_depth(value, _JSON_DEPTH)
    return msgspec.Raw(_encode(value))


def _check_depth(value: Any, left: int) -> None:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    if not left and inner:
        raise ValueError("it is nested too deeply")
    for each in inner:
        if isinstance(each, (Mapping, list, tuple)):
            _check_depth(each, left - 1)


_DATE: Final = {"type": "date", "format": "strict_date_optional_time"}
_KEPT: Final = {"type": "object", "enabled": False}
_SIMPLE: Final[dict[str, _Column]] = {
    "boolean": _Column({"type": "boolean"}, _boolean),
    "real": _Column({"type": "float"}, _real, float),
    "double precision": _Column({"type": "double"}, _double, float),
    "date": _Column(_DATE, _date),
    "timestamp": _Column(_DATE, _timestamp),
    "timestamp without time zone": _Column(_DATE, _timestamp),
    "timestamptz": _Column(_DATE, _timestamptz),
    "timestamp with time zone": _Column(_DATE, _timestamptz),
    "uuid": _Column({"type": "keyword", "ignore_above": _IGNORE_ABOVE}, _uuid),
    "bytea": _Column({"type": "binary"}, _bytea),
    "json": _Column(_KEPT, _json),
    "jsonb": _Column(_KEPT, _json),
}
_SIMPLE.update(bool=_SIMPLE["boolean"], float4=_SIMPLE["real"], float8=_SIMPLE["double precision"])
