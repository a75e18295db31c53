"""Avro readers made for one schema each: a Python function that takes whole payloads apart.

fastavro's reader asks a file object for each byte of each number, which takes more time than all else it does; the function that
is made here indexes the bytes. It knows what most schemas are made of. The rest, and each payload that it can't read, is left to
fastavro, whose answer counts.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, cast

from fastavro.read import LOGICAL_READERS

__all__ = ["compile_reader"]

_FIXED_WIDTH = {"float": Struct("<f"), "double": Struct("<d")}


class _Unsupported(Exception):
    pass


def compile_reader(schema: Any, *, offset: int = 0) -> Callable[[bytes], Any] | None:
    """Return a function that reads a payload, from `offset` to its end, by a schema that fastavro has parsed.

    The function returns what fastavro returns. For bytes that do not fit the schema, or are left over, it raises some exception.
    None where there is no such function: for schemas that refer to types by name, or are nested too deeply.
    """
    source = _Source()
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

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[str, Any] = {"long_varint": _long_varint, "long_index": _long_index}
        self._count = 0

    def read(self, schema: Any, indent: str) -> str:
        """Add the lines that read a value, and return the name that it then has."""
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
                self._index(indent)
                value = self._set(f"{self._constant(schema['symbols'])}[n]", indent)
            case "array" | "map":
                value = self._blocks(schema, kind, indent)
            case "record" | "error":
                fields = [f"{field['name']!r}: {self.read(field['type'], indent)}" for field in schema["fields"]]
                value = self._set("{" + ", ".join(fields) + "}", indent)
            case _:
                raise _Unsupported
        logical = None if isinstance(schema, str) else LOGICAL_READERS.get(f"{kind}-{schema.get('logicalType')}")
        if logical is not None:
            self._add(indent, f"{value} = {self._constant(logical)}({value}, {self._constant(schema)}, None)")
        return value

    def _union(self, branches: list[Any], indent: str) -> str:
        self._index(indent)
        value, which = self._name(), self._set("n", indent)
        for number, branch in enumerate(branches):
            self._add(indent, f"{'el' if number else ''}if {which} == {number}:")
            read = self.read(branch, indent + "    ")
            self._add(indent, f"    {value} = {read}")
        self._add(indent, "else:", "    raise ValueError(n)")
        return value

    def _blocks(self, schema: Any, kind: str, indent: str) -> str:
        value = self._set("[]" if kind == "array" else "{}", indent)
        self._add(indent, "while True:")
        inner = indent + "    "
        count = self._number(inner)
        self._add(inner, f"if {count} == 0:", "    break", f"if {count} < 0:", f"    {count} = -{count}")
        self._number(inner + "    ")  # the block's size in bytes
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
        self._index(indent)
        self._add(indent, "n += i")
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
    """Return a number and the place behind it."""
    number = shift = 0
    while True:
        byte = payload[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            if number >= 1 << 64:
                raise ValueError(number)
            return number, place
        shift += 7


def _long_index(payload: bytes, place: int) -> tuple[int, int]:
    number, place = _long_varint(payload, place)
    if number & 1:
        raise ValueError(number)
    return number >> 1, place
