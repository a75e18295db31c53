"""Where data or bytes do not fit their schema, and why: looked for when something was refused, so it is thorough, not fast."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from io import BytesIO
from typing import Any

from fastavro import schemaless_reader, schemaless_writer
from fastavro.read import LOGICAL_READERS
from fastavro.validation import validate

__all__ = ["decimal_fault", "fault_in_bytes", "fault_in_data", "path_of_nul"]

_WIDTHS = {"boolean": 1, "float": 4, "double": 8}
_PLAIN = {"boolean": bool, "double": float, "bytes": bytes, "string": str}  # for a look that is quick
_SHAPES: dict[str, Any] = {"record": Mapping, "error": Mapping, "map": Mapping, "array": (list, tuple)}


def fault_in_data(data: Any, schema: Any) -> str:
    """Return the path of the first value that does not fit, with what is wrong with it; "" if nothing is found.

    `schema` is a record that fastavro has parsed.
    """
    return _data_fault(data, schema, schema.get("__named_schemas", {}), "")


def fault_in_bytes(payload: bytes, schema: Any, offset: int) -> str:
    """Return the path of the first value that bytes do not hold, with the place and what is wrong; "" if nothing is found.

    Takes time and memory in proportion to the bytes, whatever they claim: numbers are of at most ten bytes, and each item of an
    array takes one at least (`check_schema` sees to that).

    Source: https://avro.apache.org/docs/1.12.0/specification/#binary-encoding
    """
    walk = _Bytes(payload, offset, schema.get("__named_schemas", {}) if isinstance(schema, dict) else {})
    try:
        walk.read(schema, "")
    except _Damaged as damaged:
        return str(damaged)
    if walk.at < len(payload):
        return f"{len(payload) - walk.at} bytes are left over behind the data"
    return ""


def decimal_fault(data: Any, schema: Any) -> str:
    """Return the path of the first decimal that has more digits than its field; "" if there is none.

    fastavro counts the digits that it is written with, so that it takes 1E+9 for one, and a billion bytes for 1E+999999999.
    """
    return _decimal_fault(data, schema, schema.get("__named_schemas", {}), "")


def path_of_nul(value: Any, path: str = "") -> str:
    """Return the path of the first text or key with a NUL character; "" if there is none."""
    if isinstance(value, str):
        return path * ("\0" in value)
    inner: Iterable[tuple[Any, str]] = ()
    if isinstance(value, Mapping):
        if any(isinstance(key, str) and "\0" in key for key in value):
            return f"a key of {path or 'data'}"
        inner = ((each, _below(path, key)) for key, each in value.items())
    elif isinstance(value, (list, tuple)):
        inner = ((each, f"{path}[{n}]") for n, each in enumerate(value))
    return next(filter(None, (path_of_nul(each, at) for each, at in inner)), "")


def _decimal_fault(data: Any, schema: Any, named: Mapping[str, Any], path: str) -> str:
    branches = [named.get(each, each) if isinstance(each, str) else each for each in _branches(schema)]
    faults = []
    for branch in branches:
        kind = branch if isinstance(branch, str) else branch["type"]
        inner: list[tuple[Any, Any, str]] = []
        if isinstance(data, Decimal):
            if kind in ("bytes", "fixed") and isinstance(branch, dict) and branch.get("logicalType") == "decimal":
                faults.append(_too_long(data, branch, path))
            continue
        if not isinstance(data, _SHAPES.get(kind, ())):
            continue
        if kind == "array":
            inner = [(item, branch["items"], f"{path}[{n}]") for n, item in enumerate(data)]
        elif kind == "map":
            inner = [(value, branch["values"], _below(path, key)) for key, value in data.items()]
        else:
            fields = [field for field in branch["fields"] if field["name"] in data]
            inner = [(data[field["name"]], field["type"], _below(path, field["name"])) for field in fields]
        faults.append(next(filter(None, (_decimal_fault(value, type_, named, at) for value, type_, at in inner)), ""))
    return faults[0] if faults and all(faults) else ""


def _branches(schema: Any) -> list[Any]:
    return schema if isinstance(schema, list) else [schema]


def _too_long(value: Decimal, schema: Any, path: str) -> str:
    if not value.is_finite() or not value or value.adjusted() < schema["precision"] - schema.get("scale", 0):
        return ""
    return f"{path}: {_short(value)} is beyond the precision of its field, {schema['precision']} digits"


def _below(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # a value's own code
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}…"


def _titled(schema: Any, named: Mapping[str, Any]) -> str:
    """What a type is called in a sentence."""
    if isinstance(schema, list):
        return " or ".join(_titled(branch, named) for branch in schema)
    if isinstance(schema, str):
        return schema
    logical = f"{schema['type']}-{schema.get('logicalType')}"
    return str(schema.get("name") or (schema["logicalType"] if logical in LOGICAL_READERS else schema["type"]))


def _data_fault(data: Any, schema: Any, named: Mapping[str, Any], path: str) -> str:
    schema = named.get(schema, schema) if isinstance(schema, str) else schema
    if isinstance(schema, list):
        return _union_fault(data, schema, named, path)
    kind = schema if isinstance(schema, str) else schema["type"]
    if kind not in _SHAPES:
        return _leaf_fault(data, schema, named, path)
    if not isinstance(data, _SHAPES[kind]):
        return f"{path or 'data'}: {_short(data)} is no {_titled(schema, named)}"
    if kind == "array":
        faults = (_data_fault(item, schema["items"], named, f"{path}[{n}]") for n, item in enumerate(data))
        return next(filter(None, faults), "")
    if kind == "map":
        for key, value in data.items():
            if not isinstance(key, str):
                return f"{path}: the key {_short(key)} is no string"
            fault = _data_fault(value, schema["values"], named, _below(path, key))
            if fault:
                return fault
        return ""
    fields = {field["name"]: field for field in schema["fields"]}
    for name, field in fields.items():
        if name not in data:
            if "default" not in field:
                return f"{_below(path, name)} is missing, and has no default"
            continue
        fault = _data_fault(data[name], field["type"], named, _below(path, name))
        if fault:
            return fault
    extra = [name for name in data if name not in fields]
    if extra:
        return f"{path or 'data'} has more fields than {schema['name']}: {_short(extra)}"
    return ""


def _union_fault(data: Any, branches: list[Any], named: Mapping[str, Any], path: str) -> str:
    faults = []
    for branch in branches:
        schema = named.get(branch, branch) if isinstance(branch, str) else branch
        kind = schema if isinstance(schema, str) else schema["type"]
        fault = _data_fault(data, schema, named, path)
        if not fault:
            return ""
        if isinstance(data, _SHAPES.get(kind, ())) or not fault.endswith(f" is no {_titled(schema, named)}"):
            faults.append(fault)  # the branch that was meant, as it seems
    return faults[0] if len(faults) == 1 else f"{path}: {_short(data)} is no {_titled(branches, named)}"


def _leaf_fault(data: Any, schema: Any, named: Mapping[str, Any], path: str) -> str:
    if isinstance(schema, str) and type(data) is _PLAIN.get(schema) and (data.isascii() if isinstance(data, str) else True):
        return ""
    if isinstance(data, Decimal) and isinstance(schema, dict) and schema.get("logicalType") == "decimal":
        fault = _too_long(data, schema, path)
        if fault:
            return fault
    try:
        if not validate(data, schema, raise_errors=False):
            return f"{path}: {_short(data)} is no {_titled(schema, named)}"
        buffer = BytesIO()
        schemaless_writer(buffer, schema, data)
        buffer.seek(0)
        schemaless_reader(buffer, schema, None)
    except Exception as error:  # fastavro raises whatever the conversion of a value raises
        return f"{path}: {_short(data)}: {error}"
    return ""


class _Damaged(Exception):
    pass


class _Bytes:
    """One walk through a payload. Values are skipped, not made."""

    def __init__(self, payload: bytes, at: int, named: Mapping[str, Any]) -> None:
        self.at = at
        self._payload = payload
        self._named = named

    def read(self, schema: Any, path: str) -> None:
        schema = self._named.get(schema, schema) if isinstance(schema, str) else schema
        if isinstance(schema, list):
            return self.read(schema[self._index(len(schema), "the union's type", path)], path)
        kind = schema if isinstance(schema, str) else schema["type"]
        match kind:
            case "boolean" | "float" | "double":
                self._skip(_WIDTHS[kind], path)
            case "int":
                self._number(path, 31)
            case "long":
                self._number(path)
            case "bytes" | "string":
                self._sized(path, is_text=kind == "string")
            case "fixed":
                self._skip(schema["size"], path)
            case "enum":
                self._index(len(schema["symbols"]), "the symbol", path)
            case "array" | "map":
                self._blocks(schema, kind, path)
            case "record" | "error":
                for field in schema["fields"]:
                    self.read(field["type"], _below(path, field["name"]))
        return None

    def _blocks(self, schema: Any, kind: str, path: str) -> None:
        number = 0
        while count := self._number(path):
            if count < 0 and self._number(path) < 0:
                raise self._damaged(path, "a block of negative size")
            for _ in range(abs(count)):
                if kind == "map":
                    self._sized(f"{path}{{}}", is_text=True)
                self.read(
                    schema["items" if kind == "array" else "values"], f"{path}[{number}]" if kind == "array" else f"{path}{{}}"
                )
                number += 1

    def _sized(self, path: str, *, is_text: bool) -> None:
        size = self._number(path)
        if size < 0:
            raise self._damaged(path, f"a length of {size}")
        start = self.at
        self._skip(size, path)
        if is_text:
            try:
                self._payload[start : self.at].decode()
            except UnicodeDecodeError as error:
                raise self._damaged(path, f"no UTF-8: {error.reason}") from error

    def _index(self, count: int, what: str, path: str) -> int:
        index = self._number(path)
        if not 0 <= index < count:
            raise self._damaged(path, f"{what} is number {index} of {count}")
        return index

    def _number(self, path: str, bits: int = 63) -> int:
        number = 0
        for shift in range(0, 70, 7):
            if self.at >= len(self._payload):
                raise self._damaged(path, "the bytes end here")
            byte = self._payload[self.at]
            self.at += 1
            number |= (byte & 127) << shift
            if byte < 128:
                if number >> (bits + 1):
                    raise self._damaged(path, f"a number of more than {bits + 1} bits")
                return (number >> 1) ^ -(number & 1)
        raise self._damaged(path, "a number of more than 64 bits")

    def _skip(self, size: int, path: str) -> None:
        if size > len(self._payload) - self.at:
            raise self._damaged(path, f"{size} bytes are claimed, and {len(self._payload) - self.at} follow")
        self.at += size

    def _damaged(self, path: str, why: str) -> _Damaged:
        return _Damaged(f"{path or 'data'}, at byte {self.at}: {why}")
