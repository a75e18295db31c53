"""Tables as Redis has them: a hash for each row, and the text of each column's values."""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from ..schemas import ProjectionError
from .table import Key, Table

__all__ = ["RedisTable"]

_INTEGERS: Final = {
    **dict.fromkeys(("smallint", "int2"), 16),
    **dict.fromkeys(("integer", "int", "int4"), 32),
    **dict.fromkeys(("bigint", "int8"), 64),
}
_WIDE: Final = Context(prec=2000)  # more digits than a numeric of Postgres is likely to have


class _Column(NamedTuple):
    """How values of a column are written and read. `adds` says what an increment adds to: an integer of so many bits, or "f"."""

    write: Callable[[Any], str]
    read: Callable[[str], Any]
    in_key: bool = True
    adds: int | str = ""


class RedisTable:
    """A table of a projection, as its keys and hashes.

    A row is the hash `{projection}:table:key`, its columns the hash's fields, NULL a field that is missing. A key of several
    columns is joined by ":", with "%" and ":" in its parts written as %25 and %3A.

    Raises:
        ProjectionError: a column's type has no form here.
    """

    def __init__(self, projection: str, table: Table) -> None:
        self.table = table
        self.prefix = f"{{{projection}}}:{table.name}:"
        self._columns = {name: _column(table, name, column_type) for name, column_type in table.columns.items()}

    def row_keys(self, keys: Sequence[Key]) -> list[str]:
        """Return the names of the hashes of rows. Raises what `written` does."""
        return self.names(self.written(self.table.key, keys))

    def names(self, columns: Sequence[Sequence[str | None]]) -> list[str]:
        """Return the names of the hashes of rows, of whose keys these are the texts, by column."""
        if len(self.table.key) == 1:
            return [f"{self.prefix}{text}" for text in columns[0]]
        escaped = [[str(text).replace("%", "%25").replace(":", "%3A") for text in column] for column in columns]
        return [self.prefix + ":".join(parts) for parts in zip(*escaped, strict=True)]

    def written(self, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> list[list[str | None]]:
        """Return the texts of values by column, row by row as they came; None stays None.

        Raises:
            ValueError, TypeError, ArithmeticError: a value does not fit its column.
        """
        by_column = zip(*rows, strict=True) if rows else [()] * len(columns)
        texts = []
        for name, values in zip(columns, by_column, strict=True):
            write = self._columns[name].write
            texts.append([None if value is None else write(value) for value in values])
        return texts

    def row(self, values: Sequence[str | None]) -> dict[str, Any] | None:
        """Return a row whose fields were read, all columns as declared; None if there is no such row."""
        if all(value is None for value in values):
            return None
        return {
            name: None if value is None else column.read(value)
            for (name, column), value in zip(self._columns.items(), values, strict=True)
        }

    def adds(self, column: str) -> int | str:
        """Return how the script adds to a column.

        Raises:
            ProjectionError: it can't.
        """
        how = self._columns[column].adds
        if not how:
            raise ProjectionError(
                f"table {self.table.name}: Redis can't add to {column}, which is {self.table.columns[column]}: count in integers "
                "(cents in a bigint), take double precision, or keep this projection in Postgres"
            )
        return how

    @property
    def declared(self) -> str:
        """The declaration, to be compared."""
        return msgspec.json.encode({"columns": self.table.columns, "key": self.table.key}).decode()


def _column(table: Table, name: str, column_type: str) -> _Column:
    base, _, options = column_type.partition("(")
    base = base.strip()
    limits = [int(number) for number in re.findall(r"\d+", options)]
    if base in _INTEGERS and not limits:
        return _integer(_INTEGERS[base])
    if base in ("numeric", "decimal") and name not in table.key:
        return _numeric(*limits)
    if base in ("varchar", "character varying"):
        return _text(*limits)
    column = _PLAIN.get(base)
    if column is None or limits:
        raise ProjectionError(
            f"table {table.name}: {name} is {column_type}, which has no form in Redis; there are smallint, integer, bigint, "
            f"numeric (in no key), varchar, {', '.join(_PLAIN)}"
        )
    if name in table.key and not column.in_key:
        raise ProjectionError(f"table {table.name}: {name} is {column_type}, which can be in no key in Redis")
    return column


def _text(limit: int | None = None) -> _Column:
    def write(value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is no text")
        if limit is not None and len(value) > limit:
            raise ValueError(f"a text of {len(value)} characters where {limit} is the most")
        value.encode()  # surrogates have no bytes
        return value

    return _Column(write, str)


def _integer(bits: int) -> _Column:
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1

    def write(value: Any) -> str:
        if type(value) is not int:
            if isinstance(value, str) or not hasattr(value, "__int__"):
                raise TypeError(f"{value!r} is no integer")
            value = int(value)
        if not low <= value <= high:
            raise OverflowError(f"{value} is out of range: an integer of {bits} bits")
        return str(value)

    return _Column(write, int, adds=bits)


def _numeric(precision: int | None = None, scale: int = 0) -> _Column:
    def write(value: Any) -> str:
        exact = value if isinstance(value, Decimal) else Decimal(value)
        if precision is not None and not exact.is_nan():
            if exact.is_infinite():
                raise OverflowError(f"numeric({precision},{scale}) can't hold an infinite value")
            exact = exact.quantize(Decimal(1).scaleb(-scale), ROUND_HALF_UP, _WIDE)
            if exact.adjusted() >= precision - scale and exact:
                raise OverflowError(f"{exact} is out of range: numeric({precision},{scale})")
        return str(exact) if not exact.is_finite() else format(exact, "f")

    return _Column(write, Decimal)


def _write_bool(value: Any) -> str:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is no boolean")
    return "true" if value else "false"


def _write_float(value: Any) -> str:
    if isinstance(value, str):
        raise TypeError(f"{value!r} is no number")
    number = float(value)
    return repr(number) if math.isfinite(number) else "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _write_real(value: Any) -> str:
    if isinstance(value, str):
        raise TypeError(f"{value!r} is no number")
    return _write_float(struct.unpack("<f", struct.pack("<f", float(value)))[0])


def _write_timestamptz(value: Any) -> str:
    if not isinstance(value, datetime):
        raise TypeError(f"{value!r} is no datetime")
    return value.astimezone(UTC).isoformat()


def _write_timestamp(value: Any) -> str:
    if not isinstance(value, datetime) or value.tzinfo is not None:
        raise TypeError(f"{value!r} is no datetime without time zone")
    return value.isoformat()


def _write_date(value: Any) -> str:
    if not isinstance(value, date):
        raise TypeError(f"{value!r} is no date")
    return (value.date() if isinstance(value, datetime) else value).isoformat()


def _write_uuid(value: Any) -> str:
    return str(value if isinstance(value, UUID) else UUID(value))


def _write_bytes(value: Any) -> str:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(f"{value!r} is no bytes")
    return base64.b64encode(value).decode()


def _write_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


_TIMESTAMPTZ: Final = _Column(_write_timestamptz, datetime.fromisoformat)
_TIMESTAMP: Final = _Column(_write_timestamp, datetime.fromisoformat)
_JSON: Final = _Column(_write_json, msgspec.json.decode, in_key=False)
_DOUBLE: Final = _Column(_write_float, float, in_key=False, adds="f")
_PLAIN: Final[Mapping[str, _Column]] = {
    "text": _text(),
    "boolean": _Column(_write_bool, "true".__eq__),
    "bool": _Column(_write_bool, "true".__eq__),
    "double precision": _DOUBLE,
    "float8": _DOUBLE,
    "real": _Column(_write_real, float, in_key=False),
    "float4": _Column(_write_real, float, in_key=False),
    "timestamptz": _TIMESTAMPTZ,
    "timestamp with time zone": _TIMESTAMPTZ,
    "timestamp": _TIMESTAMP,
    "timestamp without time zone": _TIMESTAMP,
    "date": _Column(_write_date, date.fromisoformat),
    "uuid": _Column(_write_uuid, UUID),
    "bytea": _Column(_write_bytes, base64.b64decode),
    "json": _JSON,
    "jsonb": _JSON,
}
