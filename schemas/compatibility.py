"""Which schema can read what another one wrote, and what is wrong where it can't.

Two questions, kept apart:

- `can_read`: do Avro's rules let a reader read what a writer wrote? Apache's own package gives the answer; what stands here
  says where and why, field by field. It is what a schema registry answers.
- `changes_meaning`: would it read something else? Avro's rules look at bytes only: milliseconds pass for microseconds, and a
  price with two decimal places for one with three.

Source: https://avro.apache.org/docs/1.12.0/specification/#schema-resolution
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import avro.errors
import avro.schema
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType

from .errors import SchemaError
from .shape import PRIMITIVES, Member, Shape, plain_schema, shape_of

__all__ = ["Incompatibility", "Level", "can_read", "changes_meaning", "incompatibilities"]


class Level(enum.StrEnum):
    """What a new version of a schema owes to the earlier ones; the names are Confluent's.

    BACKWARD: it can read what they wrote. FORWARD: they can read what it writes. FULL: both. Without TRANSITIVE only the last of
    the earlier ones counts.
    """

    BACKWARD = "BACKWARD"
    BACKWARD_TRANSITIVE = "BACKWARD_TRANSITIVE"
    FORWARD = "FORWARD"
    FORWARD_TRANSITIVE = "FORWARD_TRANSITIVE"
    FULL = "FULL"
    FULL_TRANSITIVE = "FULL_TRANSITIVE"
    NONE = "NONE"

    @property
    def backward(self) -> bool:
        return self.startswith(("BACKWARD", "FULL"))

    @property
    def forward(self) -> bool:
        return self.startswith(("FORWARD", "FULL"))

    @property
    def transitive(self) -> bool:
        return self.endswith("_TRANSITIVE")


class Incompatibility(NamedTuple):
    """One place where a schema can't take what another wrote.

    `kind` is a name of Avro's `SchemaIncompatibilityType`, or `meaning_changed`; `path` is like `address.street`,
    `items[].price`, `prices{}.amount`, "" for the whole; `said` is a sentence for people.
    """

    kind: str
    path: str
    said: str

    def __str__(self) -> str:
        """The sentence, with its place in front where it does not say that itself."""
        return self.said if not self.path or self.said.startswith(f"field {self.path!r}") else f"{self.path}: {self.said}"


def can_read(reader: Any, writer: Any) -> list[Incompatibility]:
    """Return why a reader's schema can't read what a writer's wrote, by Avro's rules; [] if it can.

    Schemas are parsed JSON that refers to nothing outside itself. The words take the writer's for the older one.

    Raises:
        SchemaError: one of them is no valid Avro, or is nested too deeply.
    """
    return _can_read(shape_of(reader), shape_of(writer), forward=False)


def incompatibilities(new: Any, earlier: Sequence[Any], level: Level) -> list[Incompatibility]:
    """Return what Avro's rules have against `new` behind `earlier` (oldest first) under a level; [] if nothing.

    Raises:
        SchemaError: one of them is no valid Avro, or is nested too deeply.
    """
    shape = shape_of(new)
    found: list[Incompatibility] = []
    for each in [] if level is Level.NONE else earlier if level.transitive else earlier[-1:]:
        old = shape_of(each)
        if level.backward:
            found += _can_read(shape, old, forward=False)
        if level.forward:
            found += _can_read(old, shape, forward=True)
    return list(dict.fromkeys(found))


def changes_meaning(new: Any, old: Any) -> list[Incompatibility]:
    """Return where `new` would take what `old` wrote for something else, although Avro's rules let it pass; [] if nowhere.

    These are: another logical type, another precision or scale of a decimal, an enum's symbol that is gone and would be read
    as the enum's default, a promotion that loses digits (long to double) or trades texts for bytes, and another namespace of
    the record, which makes it another subject and another type for readers in other languages.

    Raises:
        SchemaError: one of them is no valid Avro, or is nested too deeply.
    """
    return meaning_changes(shape_of(new), shape_of(old), forward=False)


def meaning_changes(reader: Shape, writer: Shape, *, forward: bool) -> list[Incompatibility]:
    """As `changes_meaning`; with `forward`, the reader's is the older one."""
    found = []
    if reader.kind == writer.kind == "record" and reader.name != writer.name and reader.simple_name == writer.simple_name:
        old, new = (reader, writer) if forward else (writer, reader)
        found.append(
            Incompatibility(
                "meaning_changed",
                "",
                f"the record {old.name} is now called {new.name}: that is another subject in a registry, and another type for "
                "readers in other languages; keep the namespace, or make it a new event type",
            )
        )
    try:
        changed = list(dict.fromkeys(_meaning(reader, writer, forward, set())))
    except RecursionError as error:
        raise SchemaError("the schema is nested too deeply to be compared") from error
    return found + [Incompatibility("meaning_changed", path, said) for path, said in changed]


def conflicts(reader: Shape, writer: Shape, *, forward: bool) -> list[Incompatibility]:
    """Return what Avro's rules and ours have against a reader and a writer; with `forward`, the reader's is the older one."""
    return _can_read(reader, writer, forward=forward) + meaning_changes(reader, writer, forward=forward)


def _can_read(reader: Shape, writer: Shape, *, forward: bool) -> list[Incompatibility]:
    """Let Apache's package decide, then find the words. What it says of places is of no use: it keeps them as unordered sets, and
    loses them below unions."""
    try:
        verdict = _checker().get_compatibility(_for_avro(reader), _for_avro(writer))
        if verdict.compatibility is SchemaCompatibilityType.compatible:
            return []
        found = list(dict.fromkeys(_Rules(forward).conflicts(reader, writer)))
    except RecursionError as error:
        raise SchemaError("the schema is nested too deeply to be compared") from error
    except avro.errors.AvroException as error:
        raise SchemaError(f"invalid Avro schema: {error}") from error
    if not found:  # the rules here and there have parted: theirs hold
        found = [Incompatibility(kind.name, "", "; ".join(sorted(verdict.messages))) for kind in verdict.incompatibilities[:1]]
    return found


class _Checker(ReaderWriterCompatibilityChecker):
    """Apache's checker, bounded: it adds up the faults of a type once for each path that leads there, 2**n of them."""

    def get_compatibility(self, *args: Any, **options: Any) -> Any:
        result = super().get_compatibility(*args, **options)
        result.incompatibilities = list(dict.fromkeys(result.incompatibilities))
        return result


_checker: Callable[[], Any] = _Checker


class _Rules:
    """Avro's rules, walked for their reasons. A pair of named types is looked at once: what it says is kept, and a pair that is
    under way already is taken for compatible, so that types may contain themselves."""

    def __init__(self, forward: bool) -> None:
        self._forward = forward
        self._known: dict[tuple[int, int], list[Incompatibility]] = {}

    def conflicts(self, reader: Shape, writer: Shape) -> list[Incompatibility]:
        pair = (id(reader), id(writer))
        if pair in self._known:
            return self._known[pair][:1]  # the others were said where the pair stands first
        self._known[pair] = []
        self._known[pair] = found = list(self._find(reader, writer))
        return found

    def _find(self, reader: Shape, writer: Shape) -> Iterator[Incompatibility]:
        if writer.kind == "union" and reader.kind != "union":
            for branch in writer.branches:
                found = self.conflicts(reader, branch)
                yield from self._branch(reader, writer, branch, found) if found else ()
        elif writer.kind == "union":
            for branch in writer.branches:
                found = self.conflicts(reader, branch)
                if found:
                    yield from (each._replace(kind="missing_union_branch") for each in found)
        elif reader.kind == "union":
            yield from self._into_union(reader, writer)
        elif reader.kind != writer.kind:
            if (writer.kind, reader.kind) not in _PROMOTIONS:
                yield self._say("type_mismatch", self._other_type(reader, writer))
        elif reader.kind in ("array", "map"):
            assert reader.inner is not None
            assert writer.inner is not None
            yield from _below("[]" if reader.kind == "array" else "{}", self.conflicts(reader.inner, writer.inner))
        elif reader.name:
            if reader.simple_name != writer.simple_name and writer.name not in reader.aliases:
                yield self._renamed(reader, writer)
            yield from self._named(reader, writer)

    def _named(self, reader: Shape, writer: Shape) -> Iterator[Incompatibility]:
        if reader.kind == "fixed" and reader.size != writer.size:
            old, new = self._in_time(reader.size, writer.size)
            yield self._say("fixed_size_mismatch", f"fixed {reader.simple_name} went from {old} to {new} bytes")
        if reader.kind == "enum":
            missing = [symbol for symbol in writer.symbols if symbol not in reader.symbols]
            if missing and reader.default not in reader.symbols:
                yield self._symbols(reader, missing)
        if reader.kind == "record":
            written = {member.name: member for member in writer.members}
            for member in reader.members:
                source = _source(member, written)
                if source is not None:
                    yield from _below(member.name, self.conflicts(member.shape, source.shape))
                elif not member.has_default:
                    # Avro takes an enum's own default for one of the field, and then compares the enum with the record.
                    kind = (
                        "type_mismatch"
                        if member.shape.kind == "enum" and member.shape.default
                        else "reader_field_missing_default_value"
                    )
                    yield Incompatibility(kind, member.name, self._missing(member, reader, writer))

    def _into_union(self, reader: Shape, writer: Shape) -> Iterator[Incompatibility]:
        tried = [(branch, self.conflicts(branch, writer)) for branch in reader.branches]
        if all(found for _, found in tried):
            for branch, found in tried:
                if branch.kind == writer.kind and branch.simple_name == writer.simple_name:
                    yield from (each._replace(kind="missing_union_branch") for each in found)
                    return
            yield self._say("missing_union_branch", self._lacks(reader, writer))

    def _branch(self, reader: Shape, writer: Shape, branch: Shape, found: list[Incompatibility]) -> Iterator[Incompatibility]:
        """Say what became of one branch of a union that is none any more."""
        if branch.kind == reader.kind and branch.simple_name == reader.simple_name:
            yield from found
        elif branch.kind == "null":
            yield found[0]._replace(path="", said=self._no_null())
        else:
            yield found[0]._replace(path="", said=self._other_type(reader, writer))

    def _missing(self, member: Member, reader: Shape, writer: Shape) -> str:
        if not self._forward:
            advice = (
                'give it a default, e.g. "default": null'
                if _takes_null(member.shape)
                else f"give it a default, e.g. {_nullable(member)}"
            )
            if member.shape.kind == "union" and _takes_null(member.shape) and member.shape.branches[0].kind != "null":
                advice = 'put "null" first among its types and give it the default null'
            gone = [each.name for each in writer.members if all(each.name not in (m.name, *m.aliases) for m in reader.members)]
            same = [each.name for each in writer.members if each.name in gone and str(each.shape) == str(member.shape)]
            if same:
                advice += f'; if it is {same[0]!r} under another name, give it "aliases": ["{same[0]}"]'
            return f"field {member.name!r} is new and has no default: events written before can't be read; {advice}"
        return (
            f"field {member.name!r} is gone, and the earlier schema has no default for it: programs that still read with that "
            "one can't read new events; keep the field"
        )

    def _symbols(self, reader: Shape, missing: list[str]) -> Incompatibility:
        which = ("symbol " if len(missing) == 1 else "symbols ") + ", ".join(missing)
        if self._forward:
            said = (
                f"{which} of enum {reader.simple_name} is new, and the earlier schema's enum has no default: programs that still "
                "read with that one can't read new events; add symbols only to an enum that has a default"
            )
        else:
            said = f"{which} of enum {reader.simple_name} is gone: events that hold it can't be read; keep the symbol"
        return self._say("missing_enum_symbols", said if len(missing) == 1 else said.replace(" is ", " are ", 1))

    def _renamed(self, reader: Shape, writer: Shape) -> Incompatibility:
        old, new = self._in_time(reader.simple_name, writer.simple_name)
        advice = "keep the name" if self._forward else f'keep the name, or give the new one "aliases": ["{writer.name}"]'
        return self._say("name_mismatch", f"{reader.kind} {old} is now called {new}; {advice}")

    def _lacks(self, reader: Shape, writer: Shape) -> str:
        if writer.kind == "null":
            return self._no_null()
        if self._forward:
            return f"{writer} is new among its types: programs that still read with the earlier schema know only {reader}"
        return f"{writer} is no longer among its types: events that hold one can't be read; keep it"

    def _no_null(self) -> str:
        if self._forward:
            return "it can be null now: programs that still read with the earlier schema can't read null there"
        return "it can't be null any more: events in which it is null can't be read; keep \"null\" among its types"

    def _other_type(self, reader: Shape, writer: Shape) -> str:
        return f"{_became(reader, writer, self._forward)}; keep the type, or add a new field beside it"

    def _in_time(self, of_reader: Any, of_writer: Any) -> tuple[Any, Any]:
        return (of_reader, of_writer) if self._forward else (of_writer, of_reader)

    def _say(self, kind: str, said: str) -> Incompatibility:
        return Incompatibility(kind, "", said)


_PROMOTIONS = {
    ("int", "long"),
    ("int", "float"),
    ("int", "double"),
    ("long", "float"),
    ("long", "double"),
    ("float", "double"),
    ("string", "bytes"),
    ("bytes", "string"),
}
_LOSSY = {
    ("int", "float"): "beyond 2**24 lose digits",
    ("long", "float"): "beyond 2**24 lose digits",
    ("long", "double"): "beyond 2**53 lose digits",
}


def _meaning(reader: Shape, writer: Shape, forward: bool, seen: set[tuple[int, int]]) -> Iterator[tuple[str, str]]:
    if (id(reader), id(writer)) in seen:
        return
    seen.add((id(reader), id(writer)))
    old, new = (reader, writer) if forward else (writer, reader)
    if reader.kind == "union" or writer.kind == "union":
        ours = reader.branches if reader.kind == "union" else [reader]
        for branch in writer.branches if writer.kind == "union" else [writer]:
            partner = _partner(ours, branch)
            if partner is not None:
                yield from _meaning(partner, branch, forward, seen)
        return
    if old.logical != new.logical:
        yield "", f"{old} became {new}: the same bytes mean something else; keep the type, or add a new field beside it"
    elif old.logical == "decimal" and (old.precision, old.scale) != (new.precision, new.scale):
        yield "", f"{_decimal(old)} became {_decimal(new)}: the same bytes mean another number; keep the precision and the scale"
    if (writer.kind, reader.kind) in _LOSSY:
        yield "", f"{_became(reader, writer, forward)}: numbers {_LOSSY[writer.kind, reader.kind]}"
    elif {writer.kind, reader.kind} == {"bytes", "string"}:
        yield "", f"{_became(reader, writer, forward)}: programs get another type, and not all bytes are texts"
    if reader.kind != writer.kind:
        return
    if reader.kind in ("array", "map"):
        assert reader.inner is not None
        assert writer.inner is not None
        mark = "[]" if reader.kind == "array" else "{}"
        yield from ((_joined(mark, path), said) for path, said in _meaning(reader.inner, writer.inner, forward, seen))
    elif reader.kind == "enum" and not forward and reader.default in reader.symbols:
        for symbol in writer.symbols:
            if symbol not in reader.symbols:
                yield (
                    "",
                    f"symbol {symbol} of enum {reader.simple_name} is gone: events that hold it would read as {reader.default}",
                )
    elif reader.kind == "record":
        written = {member.name: member for member in writer.members}
        for member in reader.members:
            source = _source(member, written)
            if source is not None:
                found = _meaning(member.shape, source.shape, forward, seen)
                yield from ((_joined(member.name, path), said) for path, said in found)


def _partner(branches: list[Shape], writer: Shape) -> Shape | None:
    """Return the branch that reads what another one wrote: the same type, else the first that it can be promoted to."""
    same = [each for each in branches if each.kind == writer.kind and each.simple_name == writer.simple_name]
    named = [each for each in branches if writer.name and writer.name in each.aliases]
    promoted = [each for each in branches if (writer.kind, each.kind) in _PROMOTIONS]
    return next(iter(same + named + promoted), None)


def _source(member: Member, written: dict[str, Member]) -> Member | None:
    """Return the writer's field that a reader's field is read from: by its name, else by its first alias that was written."""
    return next((written[name] for name in (member.name, *member.aliases) if name in written), None)


def _below(place: str, found: list[Incompatibility]) -> Iterator[Incompatibility]:
    return (each._replace(path=_joined(place, each.path)) for each in found)


def _joined(place: str, path: str) -> str:
    return place + path if not path or path[0] in "[{" else f"{place}.{path}"


def _became(reader: Shape, writer: Shape, forward: bool) -> str:
    old, new = (reader, writer) if forward else (writer, reader)
    return f"{old} became {new}"


def _decimal(shape: Shape) -> str:
    return f"decimal({shape.precision}, {shape.scale})"


def _takes_null(shape: Shape) -> bool:
    return shape.kind == "null" or any(branch.kind == "null" for branch in shape.branches)


def _nullable(member: Member) -> str:
    inner = f'"{member.shape.kind}"' if member.shape.kind in PRIMITIVES and not member.shape.logical else "…"
    return f'"type": ["null", {inner}], "default": null'


def _for_avro(shape: Shape) -> Any:
    """Return a schema as Apache's package takes it. Its parser warns of logical types that it does not know."""
    return avro.schema.make_avsc_object(plain_schema(shape), validate_enum_symbols=False, validate_names=False)
