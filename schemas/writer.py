"""Avro writers made for one schema each: a Python function that turns data into a payload, and into what a reader will see.

fastavro's encoder changes values in silence (5.5 in a long becomes 5), so that its bytes have to be read back and compared. The
function that is made here takes values of exactly the type that a reader gives out, in their range, and nothing else; from one
pass come the bytes and the data as it will be read. Whatever it does not take, be it wrong or only unusual (a float in a long, a
datetime as a number, a tuple for a list), is left to who calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time
from decimal import Context, Decimal, Inexact, InvalidOperation, Rounded
from struct import Struct
from typing import Any, NamedTuple, cast
from uuid import UUID

from fastavro.read import LOGICAL_READERS

from .defaults import default_value

__all__ = ["Unfit", "compile_writer"]

_MAX_NODES = 3_000  # a schema of so many types takes 0.1 s to compile, once for each process
_FLOAT, _DOUBLE = Struct("<f"), Struct("<d")
_EPOCH, _LOCAL_EPOCH = datetime(1970, 1, 1, tzinfo=UTC), datetime(1970, 1, 1)  # noqa: DTZ001 - local times have no zone
_DAYS = date(1970, 1, 1).toordinal()
_TYPES: dict[str, type] = {
    "null": type(None),
    "boolean": bool,
    "int": int,
    "long": int,
    "bytes": bytes,
    "string": str,
    "fixed": bytes,
    "enum": str,
    "array": list,
    "map": dict,
    "record": dict,
    "error": dict,
}
_LOGICAL_TYPES: dict[str, type] = {
    "decimal": Decimal,
    "uuid": UUID,
    "date": date,
    "time-millis": time,
    "time-micros": time,
    "timestamp-millis": datetime,
    "timestamp-micros": datetime,
    "local-timestamp-millis": datetime,
    "local-timestamp-micros": datetime,
}
_LOGICAL_OTHERS: dict[str, set[type]] = {
    "decimal": {bytes},
    "uuid": {str, bytes},
    "date": {int, str, datetime},
    "time-millis": {int},
    "time-micros": {int},
}


class Unfit(Exception):
    """Data that the writer does not take. It says nothing about where: whoever explains it looks again."""


class _Unsupported(Exception):
    pass


class _Test(NamedTuple):
    """What a type of a union takes: Python's type, a condition on the value, and whether fastavro takes just those, too."""

    type_: type
    condition: str = ""
    exact: bool = False


def compile_writer(schema: Any, *, header: bytes = b"") -> Callable[[Any], tuple[bytes, dict[str, Any]]] | None:
    """Return a function that writes data by a record schema that fastavro has parsed.

    The function returns the header with the bytes that fastavro writes, and what a reader makes of those. It shares with the data
    only values that can't change. For other data it raises some exception.
    None where there is no such function: for schemas that are too large, or nested too deeply.
    """
    source = _Source(schema.get("__named_schemas", {}), header)
    try:
        pieces, value = source.write(schema, "d", " ")
        whole = f" return {_joined(['header', *pieces])}.encode('latin-1'), {value}"
        exec("\n".join(["def write(d):", *source.lines, whole]), source.names)  # noqa: S102
    except (_Unsupported, SyntaxError, RecursionError):
        return None
    return cast(Callable[[Any], tuple[bytes, dict[str, Any]]], source.names["write"])


class _Source:
    """The lines of a writer, as they are made.

    A value becomes pieces of text, given as expressions, in which each character stands for a byte: texts are mostly ASCII, and
    go in as they are; an f-string puts pieces together faster than anything that bytes have.
    """

    def __init__(self, named: Mapping[str, Any], header: bytes) -> None:
        self.lines: list[str] = []
        self.names: dict[str, Any] = {
            "SIZES": _SIZES,
            "PAIRS": _PAIRS,
            "ENDS": _ENDS,
            "int_": _int,
            "long": _long,
            "BOOLEANS": ("\x00", "\x01"),
            "END": "\x00",
            "join": "".join,
            "wide": _wide,
            "Unfit": Unfit,
            "header": header.decode("latin-1"),
            **{each.__name__: each for each in (UUID, Decimal, date, datetime, time)},
        }
        self._named = named
        self._count = 0
        self._nodes = 0

    def write(self, schema: Any, name: str, indent: str, *, known: bool = False) -> tuple[list[str], str]:
        """Add the lines that write the value called `name`; return its bytes, in pieces, and the name of what is read.

        `known`: that it is of the right Python type.
        """
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise _Unsupported
        schema, kind, logical = self._resolved(schema)
        if kind == "union":
            return self._union(schema, name, indent)
        type_ = _LOGICAL_TYPES[logical] if logical is not None else _TYPES.get(kind)
        if type_ is not None and not known:
            self._unless(f"{name} is None" if type_ is type(None) else f"type({name}) is {type_.__name__}", indent)
        if logical is not None:
            return self._logical(schema, f"{kind}-{logical}", name, indent)
        match kind:
            case "null":
                return [], "None"
            case "boolean":
                return [f"BOOLEANS[{name}]"], name
            case "int" | "long":
                return self._number(name, indent, function="int_" if kind == "int" else kind), name
            case "float" | "double":
                return self._float(kind, name, indent)
            case "bytes":
                raw = self._raw(name, indent)
                return [f"SIZES[len({raw})]", raw], name
            case "string":
                encoded = self._set(f"{name} if {name}.isascii() else wide({name})", indent)
                return [f"SIZES[len({encoded})]", encoded], name
            case "fixed":
                self._unless(f"len({name}) == {schema['size']}", indent)
                return [self._raw(name, indent)], name
            case "enum":
                return [f"{self._symbols(schema)}[{name}]"], name
            case "array":
                return self._array(schema, name, indent)
            case "map":
                return self._map(schema, name, indent)
            case "record" | "error":
                return self._record(schema, name, indent)
        raise _Unsupported

    def _resolved(self, schema: Any) -> tuple[Any, str, str | None]:
        """Return a definition, its kind, and the logical type if fastavro knows it."""
        if isinstance(schema, list):
            return schema, "union", None
        if isinstance(schema, str):
            if schema not in self._named:
                return schema, schema, None
            schema = self._named[schema]
        kind, logical = schema["type"], schema.get("logicalType")
        if not isinstance(kind, str):
            raise _Unsupported
        if f"{kind}-{logical}" not in LOGICAL_READERS:
            return schema, kind, None
        if logical not in _LOGICAL_TYPES or kind == "fixed":  # a fixed with a decimal
            raise _Unsupported
        return schema, kind, logical

    def _logical(self, schema: Any, logical: str, name: str, indent: str) -> tuple[list[str], str]:
        match logical:
            case "bytes-decimal":
                return self._decimal(schema, name, indent)
            case "string-uuid":
                return ["SIZES[36]", f"str({name})"], name
            case "int-date":
                return self._number(f"{name}.toordinal() - {_DAYS}", indent), name
            case "int-time-millis" | "long-time-micros":
                self._unless(f"{name}.tzinfo is None and not {name}.fold", indent)
                seconds = f"({name}.hour * 60 + {name}.minute) * 60 + {name}.second"
                if logical == "long-time-micros":
                    return self._number(f"({seconds}) * 1000000 + {name}.microsecond", indent), name
                self._unless(f"{name}.microsecond % 1000 == 0", indent)
                return self._number(f"({seconds}) * 1000 + {name}.microsecond // 1000", indent), name
            case "long-timestamp-micros" | "long-timestamp-millis":
                self._unless(f"{name}.tzinfo is not None", indent)
                epoch, utc, value = self._constant(_EPOCH), self._constant(UTC), self._name()
                self._add(indent, f"if {name}.tzinfo is {utc}:")
                self._unless(f"not {name}.fold", indent + " ")
                self._add(indent, f" {value} = {name}", "else:", f" {value} = {name}.astimezone({utc})")
                return self._instant(logical, value, epoch, indent), value
            case "long-local-timestamp-micros" | "long-local-timestamp-millis":
                self._unless(f"{name}.tzinfo is None and not {name}.fold", indent)
                return self._instant(logical, name, self._constant(_LOCAL_EPOCH), indent), name
        raise _Unsupported

    def _instant(self, logical: str, name: str, epoch: str, indent: str) -> list[str]:
        since = self._set(f"{name} - {epoch}", indent)
        if logical.endswith("micros"):
            count = f"({since}.days * 86400 + {since}.seconds) * 1000000 + {since}.microseconds"
        else:
            self._unless(f"{since}.microseconds % 1000 == 0", indent)
            count = f"({since}.days * 86400 + {since}.seconds) * 1000 + {since}.microseconds // 1000"
        return self._number(count, indent, instant=True)

    def _decimal(self, schema: Any, name: str, indent: str) -> tuple[list[str], str]:
        precision, scale = schema["precision"], schema.get("scale", 0)
        # What has more digits than the precision, or one behind the scale, even 0, is trapped.
        context = self._constant(
            Context(prec=precision, Emin=-precision, Emax=precision, traps=[Inexact, Rounded, InvalidOperation])
        )
        quantum = Decimal(1).scaleb(-scale)
        rounded = self._set(f"{name}.quantize({self._constant(quantum)}, None, {context})", indent)
        unscaled = self._set(f"int({rounded}.scaleb({self._constant(Decimal(scale))}, {context}))", indent)
        raw = self._raw(f"{unscaled}.to_bytes(({unscaled}.bit_length() + 8) >> 3, 'big', signed=True)", indent)
        self._add(indent, f"if not {unscaled}:")  # -0 is read as 0, and 0.000 is not trapped
        self._unless(f"{name}.same_quantum({self._constant(quantum)})", indent + " ")
        self._add(indent, f" {rounded} = {self._constant(0 * quantum)}")
        return [f"SIZES[len({raw})]", raw], rounded

    def _float(self, kind: str, name: str, indent: str) -> tuple[list[str], str]:
        value = self._name()
        self._add(indent, f"if type({name}) is float:", f" {value} = {name}")
        exact = 2**53 if kind == "double" else 2**24
        self._add(indent, f"elif type({name}) is int and -{exact} <= {name} <= {exact}:", f" {value} = float({name})")
        self._add(indent, "else:", " raise Unfit")
        width = _DOUBLE if kind == "double" else _FLOAT
        packed = self._set(f"{self._constant(width.pack)}({value})", indent)
        return [self._raw(packed, indent)], value if kind == "double" else self._set(
            f"{self._constant(width.unpack)}({packed})[0]", indent
        )

    def _array(self, schema: Any, name: str, indent: str) -> tuple[list[str], str]:
        values, parts, item = self._set("[]", indent), self._name(), self._name()
        self._add(indent, f"if {name}:")
        self._add(indent, f" {parts} = [SIZES[len({name})]]")
        self._add(indent, f" for {item} in {name}:")
        pieces, value = self.write(schema["items"], item, indent + "  ")
        self._add(indent, f"  {parts}.append({_joined(pieces)})", f"  {values}.append({value})")
        self._add(indent, f" {parts}.append(END)", f" {parts} = join({parts})", "else:", f" {parts} = END")
        return [parts], values

    def _map(self, schema: Any, name: str, indent: str) -> tuple[list[str], str]:
        values, parts, key, item = self._set("{}", indent), self._name(), self._name(), self._name()
        self._add(indent, f"if {name}:")
        self._add(indent, f" {parts} = [SIZES[len({name})]]")
        self._add(indent, f" for {key}, {item} in {name}.items():")
        keys, _ = self.write("string", key, indent + "  ")
        pieces, value = self.write(schema["values"], item, indent + "  ")
        self._add(indent, f"  {parts}.append({_joined(keys + pieces)})", f"  {values}[{key}] = {value}")
        self._add(indent, f" {parts}.append(END)", f" {parts} = join({parts})", "else:", f" {parts} = END")
        return [parts], values

    def _record(self, schema: Any, name: str, indent: str) -> tuple[list[str], str]:
        fields = schema["fields"]
        defaults = {
            field["name"]: default_value(field["type"], field["default"], dict(self._named))
            for field in fields
            if "default" in field
        }
        self._add(indent, f"if len({name}) != {len(fields)}:")
        if defaults:
            whole = self._name()
            self._add(indent, f" {whole} = {{**{self._constant(defaults)}, **{name}}}")
            self._unless(f"len({whole}) == {len(fields)}", indent + " ")
            self._add(indent, "else:", f" {whole} = {name}")
            name = whole
        else:
            self._add(indent, " raise Unfit")
        pieces: list[str] = []
        values: list[str] = []
        for field in fields:  # one that is missing is a KeyError; then there may be one that the schema lacks
            more, value = self.write(field["type"], self._set(f"{name}[{field['name']!r}]", indent), indent)
            pieces += more
            values.append(f"{field['name']!r}: {value}")
        return pieces, self._set("{" + ", ".join(values) + "}", indent)

    def _union(self, branches: list[Any], name: str, indent: str) -> tuple[list[str], str]:
        """The first type that takes the value, as fastavro chooses; Unfit wherever its choice is not by Python's type alone."""
        resolved = [self._resolved(branch) for branch in branches]
        kinds = [kind for _, kind, _ in resolved]
        claimed: set[type] = set()
        written, value = self._name(), self._name()
        word = "if"
        for number, (branch, kind, logical) in enumerate(resolved):
            tests, others = self._tests(branch, kind, logical)
            if kind in ("map", "record", "error") and sum(each in ("map", "record", "error") for each in kinds) > 1:
                tests = []  # the record with the most fields
            if kind == "float" and "double" in kinds:
                tests, others = [], set()  # the double is preferred
            for test in tests:
                if test.type_ in claimed:
                    continue
                same = f"{name} is None" if test.type_ is type(None) else f"type({name}) is {test.type_.__name__}"
                self._add(indent, f"{word} {same}{test.condition.format(name)}:")
                pieces, read = self.write(branch, name, indent + " ", known=True)
                self._add(indent, f" {written} = {_joined([self._constant(_long(number << 1)), *pieces])}", f" {value} = {read}")
                word = "elif"
            claimed |= {test.type_ for test in tests if not test.exact} | others
        if word == "if":
            self._add(indent, "raise Unfit")
        else:
            self._add(indent, "else:", " raise Unfit")
        return [written], value

    def _tests(self, schema: Any, kind: str, logical: str | None) -> tuple[list[_Test], set[type]]:
        """What a type in a union takes here, and which other Python types fastavro may take for it."""
        if logical:
            return [_Test(_LOGICAL_TYPES[logical])], _LOGICAL_OTHERS.get(logical, {int, date})
        match kind:
            case "int" | "long":
                end = 2**31 if kind == "int" else 2**63
                return [_Test(int, f" and {-end} <= {{0}} < {end}", exact=True)], set()
            case "float" | "double":
                return [_Test(float), _Test(int)], set()
            case "enum":
                return [_Test(str, f" and {{0}} in {self._symbols(schema)}", exact=True)], set()
            case "fixed":
                return [_Test(bytes, f" and len({{0}}) == {schema['size']}", exact=True)], set()
            case "array":
                return [_Test(list)], {bytes}  # bytes are a sequence of numbers
        if kind not in _TYPES:
            raise _Unsupported
        return [_Test(_TYPES[kind])], set()

    def _symbols(self, schema: Any) -> str:
        return self._constant({symbol: _long(n << 1) for n, symbol in enumerate(schema["symbols"])})

    def _number(self, number: str, indent: str, *, function: str = "long", instant: bool = False) -> list[str]:
        """A number. Those of up to four bytes are looked up, or of seven and eight if it is an instant."""
        if not number.isidentifier():
            number = self._set(number, indent)
        rest, piece = self._name(), self._name()
        if not instant:
            self._add(indent, f"if 0 <= {number} < 4096:", f" {piece} = SIZES[{number}]", "else:")
            indent += " "
        self._add(indent, f"{rest} = {number} << 1 ^ {number} >> 63")
        if instant:
            low, high = self._name(), self._name()
            self._add(indent, f"if {2**42} <= {rest} < {2**56}:")
            self._add(indent, f" {low} = {rest} & 268435455", f" {high} = {rest} >> 28")
            pairs = [f"PAIRS[{low} & 16383]", f"PAIRS[{low} >> 14]", f"PAIRS[{high} & 16383]"]
            self._add(indent, f" {piece} = {_joined([*pairs, f'ENDS[{high} >> 14]'])}")
        else:
            self._add(indent, f"if {rest} < 16384:", f" {piece} = ENDS[{rest}]")
            self._add(indent, f"elif {rest} < {2**28}:", f" {piece} = PAIRS[{rest} & 16383] + ENDS[{rest} >> 14]")
        self._add(indent, "else:", f" {piece} = {function}({rest})")
        return [piece]

    def _raw(self, name: str, indent: str) -> str:
        return self._set(f"{name}.decode('latin-1')", indent)

    def _unless(self, condition: str, indent: str) -> None:
        self._add(indent, f"if not ({condition}):", " raise Unfit")

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


def _joined(pieces: list[str]) -> str:
    return pieces[0] if len(pieces) == 1 else "f'" + "".join(f"{{{piece}}}" for piece in pieces) + "'"


def _wide(text: str) -> str:
    return text.encode().decode("latin-1")


_PAIRS = [chr(low & 127 | 128) + chr(low >> 7 | 128) for low in range(2**14)]  # two bytes inside a number
_ENDS = [chr(last) if last < 128 else chr(last & 127 | 128) + chr(last >> 7) for last in range(2**14)]


def _long(rest: int) -> str:
    """Return a number as Avro writes it, of which the sign is in the last bit.

    Raises:
        Unfit: it is beyond 64 bits.
    """
    if rest < 2**14:
        return _ENDS[rest]
    if rest < 2**28:
        return _PAIRS[rest & 16383] + _ENDS[rest >> 14]
    if rest < 2**42:
        return _PAIRS[rest & 16383] + _PAIRS[rest >> 14 & 16383] + _ENDS[rest >> 28]
    if rest >> 64:
        raise Unfit
    start = _PAIRS[rest & 16383] + _PAIRS[rest >> 14 & 16383] + _PAIRS[rest >> 28 & 16383]
    rest >>= 42
    return start + (_ENDS[rest] if rest < 2**14 else _PAIRS[rest & 16383] + _ENDS[rest >> 14])


def _int(rest: int) -> str:
    if rest >> 32:
        raise Unfit
    return _long(rest)


class _Sizes(dict[int, str]):
    """Sizes and counts as Avro writes them. Most are small."""

    def __missing__(self, size: int) -> str:
        return _long(size << 1)


_SIZES = _Sizes((size, _long(size << 1)) for size in range(4096))
