"""An Avro schema as a graph: names resolved, logical types beside what they are written as. For rules that walk two schemas."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .errors import SchemaError

__all__ = ["PRIMITIVES", "Member", "Shape", "plain_schema", "shape_of"]

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})


@dataclass(eq=False)
class Shape:
    """One type in a schema. A named type that is used twice, or that contains itself, is one object.

    `kind` is Avro's type ("union" for a union); what a kind has no use for stays empty.
    """

    kind: str
    name: str = ""  # with the namespace
    aliases: frozenset[str] = frozenset()  # with the namespace
    members: list[Member] = field(default_factory=list)  # of a record
    branches: list[Shape] = field(default_factory=list)  # of a union
    inner: Shape | None = None  # items of an array, values of a map
    symbols: tuple[str, ...] = ()
    default: str | None = None  # of an enum
    size: int = 0
    logical: str = ""
    precision: int = 0
    scale: int = 0

    @property
    def simple_name(self) -> str:
        return self.name.rpartition(".")[2]

    def __str__(self) -> str:
        if self.kind == "union":
            return "[" + ", ".join(map(str, self.branches)) + "]"
        if self.kind in ("array", "map"):
            return f"{self.kind} of {self.inner}"
        if self.name:
            return f"{self.kind} {self.simple_name}"
        if self.logical == "decimal":
            return f"decimal({self.precision}, {self.scale})"
        return f"{self.kind} ({self.logical})" if self.logical else self.kind


@dataclass(eq=False)
class Member:
    """A field of a record."""

    name: str
    shape: Shape
    aliases: tuple[str, ...] = ()
    has_default: bool = False
    default: Any = None


def shape_of(schema: Any) -> Shape:
    """Return the graph of a schema that was parsed from JSON.

    Raises:
        SchemaError: it is no valid Avro, or is nested too deeply to look at.
    """
    try:
        return _read(schema, "", {})
    except RecursionError as error:
        raise SchemaError("the schema is nested too deeply to be looked at") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SchemaError(f"invalid Avro schema: {error!r}") from error


def plain_schema(shape: Shape) -> Any:
    """Return the schema as JSON values again: what the bytes are. Without logical types, and with every name in full, because
    Apache's package compares aliases as they stand."""
    return _write(shape, set())


def _read(schema: Any, space: str, named: dict[str, Shape]) -> Shape:
    if isinstance(schema, list):
        return Shape("union", branches=[_read(branch, space, named) for branch in schema])
    if isinstance(schema, str):
        return _named(schema, space, named)
    kind = schema["type"]
    if not isinstance(kind, str):  # {"type": {"type": …}}: a wrapper that says nothing
        return _read(kind, space, named)
    if kind in ("record", "error", "enum", "fixed"):
        return _read_named("record" if kind == "error" else kind, schema, space, named)
    if kind == "array":
        return Shape("array", inner=_read(schema["items"], space, named))
    if kind == "map":
        return Shape("map", inner=_read(schema["values"], space, named))
    if kind in PRIMITIVES:
        return _with_logical(Shape(kind), schema)
    return _named(kind, space, named)


def _read_named(kind: str, schema: dict[str, Any], space: str, named: dict[str, Shape]) -> Shape:
    name: str = schema["name"]
    space = name.rpartition(".")[0] if "." in name else schema.get("namespace", space) or ""
    shape = Shape(kind, name=_full(name, space), aliases=frozenset(_full(each, space) for each in schema.get("aliases", ())))
    if shape.name in named:
        raise SchemaError(f"the type {shape.name} is defined twice")
    named[shape.name] = shape
    if kind == "enum":
        shape.symbols, shape.default = tuple(schema["symbols"]), schema.get("default")
    elif kind == "fixed":
        shape.size = int(schema["size"])
        _with_logical(shape, schema)
    else:
        for each in schema["fields"]:
            aliases = tuple(each.get("aliases", ()))
            shape.members.append(
                Member(each["name"], _read(each["type"], space, named), aliases, "default" in each, each.get("default"))
            )
    return shape


def _named(name: str, space: str, named: dict[str, Shape]) -> Shape:
    if name in PRIMITIVES:
        return Shape(name)
    for full in (_full(name, space), name):
        if full in named:
            return named[full]
    raise SchemaError(f"invalid Avro schema: the type {name!r} is not defined before it is used")


def _with_logical(shape: Shape, schema: dict[str, Any]) -> Shape:
    shape.logical = str(schema.get("logicalType") or "")
    if shape.logical == "decimal":
        shape.precision, shape.scale = int(schema.get("precision") or 0), int(schema.get("scale") or 0)
    return shape


def _full(name: str, space: str) -> str:
    return name if "." in name or not space else f"{space}.{name}"


def _write(shape: Shape, defined: set[str]) -> Any:
    if shape.kind == "union":
        return [_write(branch, defined) for branch in shape.branches]
    if shape.inner is not None:
        return {"type": shape.kind, "items" if shape.kind == "array" else "values": _write(shape.inner, defined)}
    if not shape.name:
        return shape.kind
    name = _in_full(shape.name)
    if name in defined:
        return name
    defined.add(name)
    schema: dict[str, Any] = {"type": shape.kind, "name": name}
    if shape.aliases:
        schema["aliases"] = [_in_full(alias) for alias in sorted(shape.aliases)]
    if shape.kind == "enum":
        schema |= {"symbols": list(shape.symbols)} | ({"default": shape.default} if shape.default else {})
    elif shape.kind == "fixed":
        schema["size"] = shape.size
    else:
        schema["fields"] = [
            {"name": member.name, "type": _write(member.shape, defined)}
            | ({"default": member.default} if member.has_default else {})
            | ({"aliases": list(member.aliases)} if member.aliases else {})
            for member in shape.members
        ]
    return schema


def _in_full(name: str) -> str:
    """A name without a namespace would take that of the record around it."""
    return name if "." in name else f"_.{name}"
