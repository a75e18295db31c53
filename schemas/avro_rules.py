"""What a schema must hold before it becomes an event type: Avro's rules, and bounds on what it can ask for.

fastavro lets much pass that other Avro libraries refuse, and looks at no sizes. Here a schema is walked once, before anything
else touches it; a type that is referred to by name counts as often as it is used, and is looked at once.

Source: https://avro.apache.org/docs/1.12.0/specification/
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .errors import SchemaError

__all__ = ["MAX_DEFAULT_BYTES", "MAX_DEFINITION_BYTES", "MAX_DEPTH", "MAX_NODES", "check_schema", "parse_definition"]

MAX_DEFINITION_BYTES = 1_000_000
"""The longest definition, as JSON text."""
MAX_DEPTH = 32
"""Records, arrays, maps and unions inside each other."""
MAX_NODES = 10_000
"""Types in one schema, those that are referred to by name counted as often as they are used."""
MAX_DEFAULT_BYTES = 65_536
"""What a field's default may come to, with the defaults inside it filled in: a byte for each value, and the texts' lengths."""

_MAX_JSON_DEPTH = 4 * MAX_DEPTH  # a type takes up to three levels of JSON: itself, its list of fields, the field
_MAX_PRECISION = 1_000  # of a decimal: numbers of as many digits are made
_MAX_FIXED = 2**20
_MAX_EMPTY = 100  # values in a record that its bytes do not pay for

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PRIMITIVES = frozenset(["null", "boolean", "int", "long", "float", "double", "bytes", "string"])
_BASES = {
    "decimal": ("bytes", "fixed"),
    "uuid": ("string", "fixed"),
    "date": ("int",),
    "time-millis": ("int",),
    "time-micros": ("long",),
    "timestamp-millis": ("long",),
    "timestamp-micros": ("long",),
    "timestamp-nanos": ("long",),
    "local-timestamp-millis": ("long",),
    "local-timestamp-micros": ("long",),
    "local-timestamp-nanos": ("long",),
    "duration": ("fixed",),
}
_SIZES = {"uuid": 16, "duration": 12}
_INTEGERS = {"int": 2**31, "long": 2**63}


class _Type(NamedTuple):
    """A type that was found to be in order. References to one named type share one object."""

    kind: str
    name: str = ""
    nodes: int = 1
    depth: int = 1
    takes_no_bytes: bool = False
    inner: Sequence[_Type] = ()
    fields: Mapping[str, tuple[_Type, int | None]] = {}  # by name: its type, and what its default comes to
    symbols: Sequence[str] = ()
    size: int = 0


def parse_definition(text: str | bytes) -> Any:
    """Parse a schema's JSON text.

    Raises:
        SchemaError: it is too long, too deep, or not JSON.
    """
    if len(text) > MAX_DEFINITION_BYTES:
        raise SchemaError(f"the definition is longer than {MAX_DEFINITION_BYTES:,} bytes")
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise SchemaError(_too_deep("")) from error
    except ValueError as error:
        raise SchemaError(f"not JSON: {error}") from error


def check_schema(schema: Any, *, recursive: bool = False) -> None:
    """Check an Avro schema, given as parsed JSON, in time that grows with its text alone.

    A type that contains itself is valid Avro, and refused unless `recursive`: fastavro reads and writes it by recursion in C
    without a limit, so that a few thousand levels (or as many hostile bytes) end the process by a segmentation fault.

    Raises:
        SchemaError: it breaks a rule or a bound; the place is named by its path, like `items[].price` or `counts{}`.
    """
    _check_extent(schema)
    _Walk(recursive).type(json.loads(json.dumps(schema)), "", "", 1)  # tuples are lists, and keys are texts


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _too_deep(path: str) -> str:
    return f"{_at(path)}nested deeper than {MAX_DEPTH} levels; flatten it, or keep the inner part as JSON in a string"


def _at(path: str) -> str:
    return f"{path}: " if path else ""


def _below(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _check_extent(schema: Any) -> None:
    """Bound what the rest is given: the size of the text, without making it, and the depth of all JSON in it."""
    size = 0
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    while waiting:
        value, depth = waiting.pop()
        size += 2
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, int):
            size += value.bit_length() // 4
        elif isinstance(value, (dict, list, tuple)):
            if depth > _MAX_JSON_DEPTH:
                raise SchemaError(_too_deep(""))
            for key in value if isinstance(value, dict) else ():
                size += len(key) + 3 if isinstance(key, str) else 3
            waiting += [(inner, depth + 1) for inner in (value.values() if isinstance(value, dict) else value)]
            size += len(value)
        elif not (value is None or (isinstance(value, float) and math.isfinite(value))):
            raise SchemaError(f"not JSON: {_short(value)}")
        if size + len(waiting) > MAX_DEFINITION_BYTES:
            raise SchemaError(f"the definition is longer than {MAX_DEFINITION_BYTES:,} bytes")


class _Walk:
    """One walk through one schema. `path` is the place for people, `namespace` the one that names are looked up in."""

    def __init__(self, recursive: bool = False) -> None:
        self._recursive = recursive
        self._known: dict[str, _Type | None] = {}  # by full name; None while it is being looked at
        self._nodes = 0

    def type(self, schema: Any, path: str, namespace: str, depth: int) -> _Type:
        found = self._new_type(schema, path, namespace, depth)
        if depth + found.depth - 1 > MAX_DEPTH:
            raise SchemaError(_too_deep(path))
        if found.nodes > MAX_NODES:
            raise SchemaError(
                f"{_at(path)}more than {MAX_NODES:,} types, each counted as often as it is used; split the event, "
                "or keep a part as JSON in a string"
            )
        return found

    def _new_type(self, schema: Any, path: str, namespace: str, depth: int) -> _Type:
        if depth > MAX_DEPTH:
            raise SchemaError(_too_deep(path))
        if isinstance(schema, str):
            return self._referred(schema, path, namespace)
        if isinstance(schema, list):
            return self._union(schema, path, namespace, depth)
        if not isinstance(schema, dict):
            raise SchemaError(f"{_at(path)}{_short(schema)} is no type")
        kind = schema.get("type")
        if kind in ("record", "error"):
            found = self._record(schema, path, namespace, depth)
        elif kind == "enum":
            found = self._enum(schema, path, namespace)
        elif kind == "fixed":
            found = self._fixed(schema, path, namespace)
        elif kind in ("array", "map"):
            found = self._collection(schema, kind, path, namespace, depth)
        elif isinstance(kind, str) and kind in _PRIMITIVES:
            found = _primitive(kind)
        elif "type" not in schema:
            raise SchemaError(f"{_at(path)}{_short(schema)} has no type")
        else:
            raise SchemaError(f"{_at(path)}{_short(kind)} is no type to describe here; refer to a named type by its name alone")
        _check_logical_type(schema, found, path)
        return found

    def _referred(self, name: str, path: str, namespace: str) -> _Type:
        if name in _PRIMITIVES:
            return _primitive(name)
        full = f"{namespace}.{name}" if namespace and "." not in name else name
        if full not in self._known:
            raise SchemaError(f"{_at(path)}{full} is no type that is known here; define it where it is first used")
        found = self._known[full]
        if found is None and self._recursive:
            return _Type("record", full)
        if found is None:
            raise SchemaError(f"{_at(path)}{full} contains itself; give it a bounded depth, or keep the tree as JSON in a string")
        return found

    def _union(self, branches: list[Any], path: str, namespace: str, depth: int) -> _Type:
        if not branches:
            raise SchemaError(f"{_at(path)}a union without types")
        if any(isinstance(branch, list) for branch in branches):
            raise SchemaError(f"{_at(path)}a union holds a union")
        inner = [self.type(branch, path, namespace, depth + 1) for branch in branches]
        kinds = [each.name or each.kind for each in inner]
        if len(set(kinds)) < len(kinds):
            raise SchemaError(f"{_at(path)}a union holds one type twice: {_short(kinds)}")
        return _Type("union", nodes=_total(inner), depth=_deepest(inner), inner=inner)

    def _collection(self, schema: dict[str, Any], kind: str, path: str, namespace: str, depth: int) -> _Type:
        key = "items" if kind == "array" else "values"
        if key not in schema:
            raise SchemaError(f"{_at(path)}{'an array without items' if kind == 'array' else 'a map without values'}")
        inner = self.type(schema[key], path + ("[]" if kind == "array" else "{}"), namespace, depth + 1)
        if kind == "array" and inner.takes_no_bytes:
            raise SchemaError(f"{_at(path)}the items of an array take no bytes, so that a few bytes could claim 2**60 of them")
        return _Type(kind, nodes=inner.nodes + 1, depth=inner.depth + 1, inner=[inner])

    def _record(self, schema: dict[str, Any], path: str, namespace: str, depth: int) -> _Type:
        full, namespace = self._define(schema, path, namespace)
        members = schema.get("fields")
        if not isinstance(members, list):
            raise SchemaError(f"{_at(path)}the fields of {full} are no list: {_short(members)}")
        for member in members:
            if not isinstance(member, dict) or not _is_name(member.get("name")):
                raise SchemaError(f"{_at(path)}a field of {full} has no proper name: {_short(member)}")
        names = [member["name"] for member in members]
        if len(set(names)) < len(names):
            twice = next(name for n, name in enumerate(names) if name in names[:n])
            raise SchemaError(f"{_at(path)}the fields of {full} are repeated: {twice!r}")
        fields: dict[str, tuple[_Type, int | None]] = {}
        for member in members:
            at = _below(path, member["name"])
            if "type" not in member:
                raise SchemaError(f"{_at(at)}the field has no type")
            _check_aliases(member, at, dotted=False)
            if member.get("order", "ascending") not in ("ascending", "descending", "ignore"):
                raise SchemaError(f"{_at(at)}the order {_short(member['order'])} is none of ascending, descending, ignore")
            type_ = self.type(member["type"], at, namespace, depth + 1)
            fields[member["name"]] = type_, _check_default(type_, member["default"], at) if "default" in member else None
            self._nodes += 1
            if self._nodes > MAX_NODES:
                raise SchemaError(f"{_at(at)}more than {MAX_NODES:,} fields; split the event, or keep a part as JSON in a string")
        inner = [type_ for type_, _ in fields.values()]
        if sum(type_.nodes for type_ in inner if type_.takes_no_bytes) > _MAX_EMPTY:
            raise SchemaError(
                f"{_at(path)}more than {_MAX_EMPTY} values of {full} take no bytes; a few bytes could fill the memory"
            )
        empty = all(type_.takes_no_bytes for type_ in inner)
        return self._done(_Type("record", full, _total(inner), _deepest(inner), empty, fields=fields))

    def _enum(self, schema: dict[str, Any], path: str, namespace: str) -> _Type:
        full, _ = self._define(schema, path, namespace)
        symbols = schema.get("symbols")
        if not isinstance(symbols, list) or not symbols:
            raise SchemaError(f"{_at(path)}the symbols of {full} are no list of names: {_short(symbols)}")
        wrong = [symbol for symbol in symbols if not _is_name(symbol)]
        if wrong:
            raise SchemaError(f"{_at(path)}the symbol {_short(wrong[0])} of {full} is no name")
        if len(set(symbols)) < len(symbols):
            raise SchemaError(f"{_at(path)}the symbols of {full} are not unique")
        if "default" in schema and schema["default"] not in symbols:
            raise SchemaError(f"{_at(path)}the default {_short(schema['default'])} is no symbol of {full}")
        return self._done(_Type("enum", full, symbols=symbols))

    def _fixed(self, schema: dict[str, Any], path: str, namespace: str) -> _Type:
        full, _ = self._define(schema, path, namespace)
        size = schema.get("size")
        if type(size) is not int or not 0 <= size <= _MAX_FIXED:
            raise SchemaError(f"{_at(path)}the size of {full} is {_short(size)}; it is a number of bytes, at most {_MAX_FIXED:,}")
        return self._done(_Type("fixed", full, takes_no_bytes=size == 0, size=size))

    def _define(self, schema: dict[str, Any], path: str, namespace: str) -> tuple[str, str]:
        """Return the full name of a new type, and the namespace inside it."""
        name, own = schema.get("name"), schema.get("namespace", namespace)
        own = "" if own is None else own  # as some tools write it
        if not isinstance(name, str) or not all(map(_NAME.fullmatch, name.split("."))):
            raise SchemaError(f"{_at(path)}{_short(name)} is no name")
        if not isinstance(own, str) or (own and not all(map(_NAME.fullmatch, own.split(".")))):
            raise SchemaError(f"{_at(path)}the namespace {_short(own)} is no name")
        full = f"{own}.{name}" if own and "." not in name else name
        if full in _PRIMITIVES:
            raise SchemaError(f"{_at(path)}{full} is the name of a primitive type")
        if full in self._known:
            raise SchemaError(f"{_at(path)}{full} is defined twice; refer to the first by its name")
        _check_aliases(schema, path, dotted=True)
        self._known[full] = None
        return full, full.rpartition(".")[0]

    def _done(self, found: _Type) -> _Type:
        self._known[found.name] = found
        return found


def _primitive(kind: str) -> _Type:
    return _Type(kind, takes_no_bytes=kind == "null")


def _total(inner: Sequence[_Type]) -> int:
    return 1 + sum(each.nodes for each in inner)


def _deepest(inner: Sequence[_Type]) -> int:
    return 1 + max((each.depth for each in inner), default=0)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _check_aliases(schema: dict[str, Any], path: str, *, dotted: bool) -> None:
    aliases = schema.get("aliases")
    if aliases is None:
        return
    if not isinstance(aliases, list):
        raise SchemaError(f"{_at(path)}the aliases {_short(aliases)} are no list of names")
    for alias in aliases:
        if not isinstance(alias, str) or not all(map(_NAME.fullmatch, alias.split(".") if dotted else [alias])):
            raise SchemaError(f"{_at(path)}the alias {_short(alias)} is no name")


def _check_logical_type(schema: dict[str, Any], found: _Type, path: str) -> None:
    """Avro ignores logical types that it does not know, and so does this; one that is known must be what it is known for."""
    logical = schema.get("logicalType")
    if logical is None:
        return
    if not isinstance(logical, str):
        raise SchemaError(f"{_at(path)}the logical type {_short(logical)} is no name")
    bases = _BASES.get(logical)
    if bases is None:
        return
    if found.kind not in bases:
        raise SchemaError(f"{_at(path)}the logical type {logical} is for {' or '.join(bases)}, not {found.kind}")
    if found.kind == "fixed" and logical in _SIZES and found.size != _SIZES[logical]:
        raise SchemaError(f"{_at(path)}the logical type {logical} needs a fixed of {_SIZES[logical]} bytes, not {found.size}")
    if logical == "decimal":
        precision, scale = schema.get("precision"), schema.get("scale", 0)
        if type(precision) is not int or not 1 <= precision <= _MAX_PRECISION:
            raise SchemaError(f"{_at(path)}a decimal needs a precision from 1 to {_MAX_PRECISION:,}, not {_short(precision)}")
        if type(scale) is not int or not 0 <= scale <= precision:
            raise SchemaError(f"{_at(path)}the scale of a decimal is from 0 to its precision, not {_short(scale)}")
        if found.kind == "fixed" and precision > _digits(found.size):
            raise SchemaError(
                f"{_at(path)}a fixed of {found.size} bytes holds decimals of {_digits(found.size)} digits, not {precision}"
            )


def _digits(size: int) -> int:
    return math.floor(math.log10(2) * (8 * size - 1)) if size else 0


def _check_default(type_: _Type, value: Any, path: str) -> int:
    """Return what a default comes to, with what it leaves to the defaults of fields inside it.

    Raises:
        SchemaError: it does not fit the type, or comes to too much.
    """
    size = _default_size(type_, value, path)
    if size > MAX_DEFAULT_BYTES:
        raise SchemaError(f"{path}: the default comes to more than {MAX_DEFAULT_BYTES:,} bytes")
    return size


def _default_size(type_: _Type, value: Any, path: str) -> int:
    if type_.kind == "union":
        return _default_size(type_.inner[0], value, path)  # the first branch is the one that every Avro library looks at
    if type_.kind == "array" and isinstance(value, list):
        return 1 + sum(_default_size(type_.inner[0], item, f"{path}[{n}]") for n, item in enumerate(value))
    if type_.kind == "map" and isinstance(value, dict):
        return 1 + sum(len(key) + _default_size(type_.inner[0], value[key], _below(path, key)) for key in value)
    if type_.kind == "record" and isinstance(value, dict):
        unknown = set(value) - set(type_.fields)
        if unknown:
            raise SchemaError(
                f"{path}: Default value {_short(value)} has fields that {type_.name} lacks: {_short(sorted(unknown))}"
            )
        return 1 + sum(_member_size(type_, name, value, path) for name in type_.fields)
    if not _fits(type_, value):
        raise SchemaError(
            f"{path}: Default value {_short(value)} must match {type_.name or type_.kind}; for a union, that is its first type"
        )
    return 1 + (len(value) if isinstance(value, str) else 0)


def _member_size(type_: _Type, name: str, value: dict[str, Any], path: str) -> int:
    member, size = type_.fields[name]
    if name in value:
        return _default_size(member, value[name], _below(path, name))
    if size is None:
        raise SchemaError(f"{path}: Default value {_short(value)} lacks the field {name!r} of {type_.name}, which has no default")
    return size


def _fits(type_: _Type, value: Any) -> bool:
    match type_.kind:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "int" | "long":
            bound = _INTEGERS[type_.kind]
            return type(value) is int and -bound <= value < bound
        case "float" | "double":
            return type(value) is float or (type(value) is int and abs(value) < 2**1023)
        case "enum":
            return value in type_.symbols
        case "bytes" | "fixed":
            whole = type_.kind == "bytes" or (isinstance(value, str) and len(value) == type_.size)
            return whole and isinstance(value, str) and all(character <= "\xff" for character in value)
        case "string":
            return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)
    return False
