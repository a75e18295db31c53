"""Avro readers made for one schema each: a Python function that takes whole payloads apart.

fastavro's reader asks a file object for each byte of each number, which takes more time than all else it does; the function that
is made here indexes the bytes. Types that are referred to by name are written out in each place. What is too large for that, and
each payload that it can't read, is left to fastavro.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from struct import Struct
from typing import Any, cast

from fastavro.read import LOGICAL_READERS

__all__ = ["compile_reader"]

_MAX_NODES = 3_000  # a schema of so many types takes 0.3 s to compile, once for each process
_ONE_BYTE = 64  # so many numbers from 0 take one byte; the writers of longer ones than need be are left to fastavro
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIXED_WIDTH = {"float": Struct("<f"), "double": Struct("<d")}


class _Unsupported(Exception):
    pass


def compile_reader(schema: Any, *, offset: int = 0) -> Callable[[bytes], Any] | None:
    """Return a function that reads a payload, from `offset` to its end, by a schema that fastavro has parsed.

    The function returns what fastavro returns. For bytes that do not fit the schema, or are left over, it raises some exception.
    None where there is no such function: for schemas that are too large, or nested too deeply.
    """
    source = _Source(schema.get("__named_schemas", {}) if isinstance(schema, dict) else {})
    try:
        value = source.read(schema, "    ")
        lines = [
            "def read(p):",
            f"    i = {offset}",
            *source.lines,
            "    if i != len(p):",
            "        raise ValueError(i)",
            f"    return {value}",
        ]
        exec("\n".join(lines), source.names)  # noqa: S102 - made of what stands here; names of fields come in as literals
    except (_Unsupported, SyntaxError, RecursionError):
        return None
    return cast(Callable[[bytes], Any], source.names["read"])


class _Source:
    """The lines of a reader, as they are made. `p` is the payload, `i` the place in it."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        self.lines: list[str] = []
        self.names: dict[str, Any] = {"long_varint": _long_varint, "long_index": _long_index}
        self._named = named
        self._count = 0
        self._nodes = 0

    def read(self, schema: Any, indent: str) -> str:
        """Add the lines that read a value, and return the name that it then has."""
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise _Unsupported
        if isinstance(schema, str):
            schema = self._named.get(schema, schema)
        if isinstance(schema, list):
            return self._union(schema, indent)
        kind = schema if isinstance(schema, str) else schema["type"]
        if not isinstance(kind, str):
            raise _Unsupported
        match kind:
            case "null":
                value = self._set("None", indent)
            case "boolean":
                value = self._set("p[i] != 0", indent)
                self._add(indent, "i += 1")
            case "int" | "long":
                value = self._number(indent)
            case "float" | "double":
                unpack = self._constant(_FIXED_WIDTH[kind].unpack_from)
                value = self._set(f"{unpack}(p, i)[0]", indent)
                self._add(indent, f"i += {_FIXED_WIDTH[kind].size}")
            case "bytes" | "string":
                value = self._sized(indent, ".decode()" if kind == "string" else "")
            case "fixed":
                value = self._set(f"p[i : i + {schema['size']}]", indent)
                self._add(indent, f"i += {schema['size']}", "if i > len(p):", "    raise ValueError(i)")
            case "enum":
                value = self._symbol(schema["symbols"], indent)
            case "array" | "map":
                value = self._blocks(schema, kind, indent)
            case "record" | "error":
                fields = [f"{field['name']!r}: {self.read(field['type'], indent)}" for field in schema["fields"]]
                value = self._set("{" + ", ".join(fields) + "}", indent)
            case _:
                raise _Unsupported
        if isinstance(schema, dict) and f"{kind}-{schema.get('logicalType')}" in LOGICAL_READERS:
            self._convert(schema, f"{kind}-{schema['logicalType']}", value, indent)
        return value

    def _convert(self, schema: Any, logical: str, value: str, indent: str) -> None:
        """fastavro's conversions; those that are frequent are written out, which takes half the time."""
        match logical:
            case "long-timestamp-micros":
                self._add(indent, f"{value} = {self._constant(_EPOCH)} + {self._constant(timedelta)}(0, 0, {value})")
            case "bytes-decimal":
                context = self._constant(Context(prec=schema["precision"]))
                number = f"{self._constant(int.from_bytes)}({value}, 'big', signed=True)"
                shift = self._constant(Decimal(-schema.get("scale", 0)))
                self._add(indent, f"{value} = {context}.create_decimal({number}).scaleb({shift}, {context})")
            case _:
                self._add(
                    indent, f"{value} = {self._constant(LOGICAL_READERS[logical])}({value}, {self._constant(schema)}, None)"
                )

    def _symbol(self, symbols: list[str], indent: str) -> str:
        if len(symbols) > _ONE_BYTE:
            self._index(indent)
            return self._set(f"{self._constant(symbols)}[n]", indent)
        self._add(indent, "n = p[i]", "i += 1")
        return self._set(f"{self._constant({2 * n: symbol for n, symbol in enumerate(symbols)})}[n]", indent)

    def _union(self, branches: list[Any], indent: str) -> str:
        if len(branches) > _ONE_BYTE:
            raise _Unsupported
        value, which = self._name(), self._set("p[i]", indent)
        self._add(indent, "i += 1")
        for number, branch in enumerate(branches):
            self._add(indent, f"{'el' if number else ''}if {which} == {2 * number}:")
            read = self.read(branch, indent + "    ")
            self._add(indent, f"    {value} = {read}")
        self._add(indent, "else:", f"    raise ValueError({which})")
        return value

    def _blocks(self, schema: Any, kind: str, indent: str) -> str:
        value = self._set("[]" if kind == "array" else "{}", indent)
        self._add(indent, "while True:")
        inner = indent + "    "
        count = self._number(inner)
        self._add(inner, f"if {count} == 0:", "    break", f"if {count} < 0:", f"    {count} = -{count}")
        size = self._number(inner + "    ")  # of the block in bytes
        self._add(inner, f"    if {size} < 0:", f"        raise ValueError({size})")
        self._add(inner, f"for _ in range({count}):")
        if kind == "array":
            read = self.read(schema["items"], inner + "    ")
            self._add(inner, f"    {value}.append({read})")
        else:
            key = self._sized(inner + "    ", ".decode()")
            read = self.read(schema["values"], inner + "    ")
            self._add(inner, f"    {value}[{key}] = {read}")
        return value

    def _sized(self, indent: str, decode: str) -> str:
        """Bytes behind their length. A place beyond the end shows in the next byte that is looked at, or at the end."""
        self._add(
            indent,
            "n = p[i]",
            "if n & 129:",
            "    if n & 1 or p[i + 1] > 127:",
            "        n, i = long_index(p, i)",
            "        n += i",
            "    else:",
            "        i += 2",
            "        n = (p[i - 1] << 6) + (n >> 1) + i - 64",
            "else:",
            "    i += 1",
            "    n = (n >> 1) + i",
        )
        value = self._set(f"p[i:n]{decode}", indent)
        self._add(indent, "i = n")
        return value

    def _index(self, indent: str) -> None:
        """A number that can't be negative, as `n`: of one or two bytes without a call."""
        self._add(
            indent,
            "n = p[i]",
            "if n & 129:",
            "    if n & 1 or p[i + 1] > 127:",
            "        n, i = long_index(p, i)",
            "    else:",
            "        n = (p[i + 1] << 6) + (n >> 1) - 64",
            "        i += 2",
            "else:",
            "    n >>= 1",
            "    i += 1",
        )

    def _number(self, indent: str) -> str:
        """A number: of one or two bytes without a call."""
        self._add(
            indent,
            "n = p[i]",
            "i += 1",
            "if n > 127:",
            "    if p[i] > 127:",
            "        n, i = long_varint(p, i - 1)",
            "    else:",
            "        n += (p[i] << 7) - 128",
            "        i += 1",
        )
        return self._set("(n >> 1) ^ -(n & 1)", indent)

    def _set(self, expression: str, indent: str) -> str:
        name = self._name()
        self._add(indent, f"{name} = {expression}")
        return name

    def _constant(self, value: Any) -> str:
        name = self._name()
        self.names[name] = value
        return name

    def _name(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def _add(self, indent: str, *lines: str) -> None:
        self.lines += [indent + line for line in lines]


def _long_varint(payload: bytes, place: int) -> tuple[int, int]:
    """Return a number of three bytes or more, and the place behind it."""
    byte = payload[place + 2]
    number = (payload[place] & 127) + ((payload[place + 1] & 127) << 7) + ((byte & 127) << 14)
    if byte < 128:
        return number, place + 3
    place += 3
    for shift in range(21, 70, 7):  # without an end, a megabyte of 0xff would take minutes
        byte = payload[place]
        place += 1
        if byte < 128:
            number |= byte << shift
            if number >= 1 << 64:
                break
            return number, place
        number |= (byte & 127) << shift
    raise ValueError(number)


def _long_index(payload: bytes, place: int) -> tuple[int, int]:
    number, place = _long_varint(payload, place)
    if number & 1:
        raise ValueError(number)
    return number >> 1, place
