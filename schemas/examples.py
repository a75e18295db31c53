"""Values of a schema: few, small, and between them every branch, symbol and bound. What checks are run on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from .errors import SchemaError
from .shape import Shape, shape_of

__all__ = ["examples_of"]

Weighed = tuple[int, Any]
"""A value and about how many characters it takes as JSON."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LEAP_DAY = datetime(2024, 2, 29, 23, 59, 59, 999000, tzinfo=UTC)
_PRIMITIVE: dict[str, list[Any]] = {
    "null": [None],
    "boolean": [False, True],
    "int": [0, 1, -1, 2**31 - 1, -(2**31)],
    "long": [0, 1, -1, 2**53 + 1, 2**63 - 1, -(2**63)],
    "float": [0.0, 1.5, -1.5, 3.4028234663852886e38],
    "double": [0.0, 1.5, -1.5, 1.7976931348623157e308],
    "bytes": [b"", b"\x00\xff"],
    "string": ["", "a", "Zoë 😀"],
}
_LOGICAL: dict[tuple[str, str], list[Any]] = {
    ("int", "date"): [date(1970, 1, 1), _LEAP_DAY.date(), date(1969, 12, 31)],
    ("int", "time-millis"): [time(0), _LEAP_DAY.time()],
    ("long", "time-micros"): [time(0), _LEAP_DAY.time(), time(0, 0, 0, 1)],
    ("string", "uuid"): [UUID(int=0), UUID("01890a5d-ac96-774b-bcce-b302099a8057")],
}
for _zone, _kind in ((UTC, "timestamp"), (None, "local-timestamp")):
    _times = [at.replace(tzinfo=_zone) for at in (_EPOCH, _LEAP_DAY, _EPOCH - timedelta(milliseconds=1))]
    _LOGICAL["long", f"{_kind}-millis"] = _times
    _LOGICAL["long", f"{_kind}-micros"] = [*_times, _times[0] + timedelta(microseconds=1)]


def examples_of(schema: Any) -> Iterator[Any]:
    """Yield values of an Avro schema (parsed JSON), as programs see them: Decimal, date, datetime, UUID for logical types.

    They are finite, the same each time, and the smallest comes first. Between them they take every branch of every union, every
    symbol of every enum, empty and non-empty arrays and maps, and the bounds of numbers. Each field is varied while the others
    keep their smallest value, so that their number grows with the schema's text. A type that contains itself is entered twice.

    Values share their parts: copy before changing one.

    Raises:
        SchemaError: the schema is no valid Avro, or has no finite value.
    """
    values = _Values().of(shape_of(schema))
    if not values:
        raise SchemaError("a type contains itself without an end: no value is finite")
    yield from (value for _, value in values)


class _Values:
    def __init__(self) -> None:
        self._under_way: dict[int, int] = {}

    def of(self, shape: Shape) -> list[Weighed]:
        """Return the values of a type, the lightest first; [] if it lies too deep in itself."""
        if shape.kind == "record":
            depth = self._under_way.get(id(shape), 0)
            if depth == 2:
                return []
            self._under_way[id(shape)] = depth + 1
            values = self._record(shape)
            self._under_way[id(shape)] = depth
        elif shape.kind == "union":
            values = [value for branch in shape.branches for value in self.of(branch)]
        elif shape.inner is not None:
            values = self._many(self.of(shape.inner), shape.kind == "map")
        else:
            values = [(_weight(value), value) for value in _scalars(shape)]
        return sorted(values, key=lambda value: value[0])

    def _record(self, shape: Shape) -> list[Weighed]:
        members = [(member.name, self.of(member.shape)) for member in shape.members]
        if not all(values for _, values in members):
            return []
        smallest = {name: values[0][1] for name, values in members}
        weight = 2 + sum(len(name) + 4 + values[0][0] for name, values in members)
        found: list[Weighed] = [(weight, smallest)]
        for name, values in members:
            found += [(weight - values[0][0] + other, smallest | {name: value}) for other, value in values[1:]]
        return found

    def _many(self, inner: list[Weighed], named: bool) -> list[Weighed]:
        empty: Any = {} if named else []
        found: list[Weighed] = [(2, empty)]
        for weight, value in inner:
            found.append((weight + 6, {"k": value}) if named else (weight + 2, [value]))
        if inner:
            first, last = inner[0], inner[-1]
            both: Any = {"k": first[1], "ö": last[1]} if named else [first[1], last[1]]
            found.append((first[0] + last[0] + (11 if named else 3), both))
        return found


def _scalars(shape: Shape) -> list[Any]:
    if shape.kind == "enum":
        return list(shape.symbols)
    if shape.logical == "decimal" and shape.kind in ("bytes", "fixed"):
        return _decimals(shape)
    known = _LOGICAL.get((shape.kind, shape.logical))
    if known is not None:
        return known
    if shape.kind == "fixed":
        return [bytes(shape.size), b"\xff" * shape.size] if shape.size else [b""]
    return _PRIMITIVE[shape.kind]


def _decimals(shape: Shape) -> list[Decimal]:
    most = 10**shape.precision - 1
    if shape.kind == "fixed":
        most = min(most, 2 ** (8 * shape.size - 1) - 1)
    unscaled = sorted({0, 1, -1, most, -most}, key=lambda number: (abs(number), -number))
    return [Decimal((int(number < 0), tuple(map(int, str(abs(number)))), -shape.scale)) for number in unscaled]


def _weight(value: Any) -> int:
    if isinstance(value, (str, bytes)):
        return len(value) + 2
    return 4 if value is None else len(str(value))
