"""Upcasting: events that were written in an old schema version are read in today's shape.

A step leads from one version of an event type to a later one: an upcaster, which is a pure function of the data, or, where none
is given, Avro's own rules (a new field takes its default, a field that is gone is left out). Steps are chained. Which version is
today's is the program's own: the highest one that it declares; where it declares none, the highest that is registered.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from typing import Any, NamedTuple

from fastavro import schemaless_reader, schemaless_writer

from .compatibility import can_read, changes_meaning
from .defaults import parse_with_defaults
from .errors import DecodeError, SchemaError
from .event_type import EventType

__all__ = ["Step", "Upcaster", "Upcasting", "upcaster"]

Data = dict[str, Any]
Convert = Callable[[Data], Mapping[str, Any]]


class Upcaster:
    """A step from one version of an event type to a later one; made by `@upcaster`. Calling it runs the function.

    Attributes: `event_type`, `from_version`, `to_version`, `up`, and `down`, the way back, None unless it was given.
    """

    def __init__(self, event_type: str, from_version: int, to_version: int, up: Convert) -> None:
        self.event_type = event_type
        self.from_version = from_version
        self.to_version = to_version
        self.up = up
        self.down: Convert | None = None
        self.__doc__ = up.__doc__

    def __call__(self, data: Data) -> Mapping[str, Any]:
        return self.up(data)

    def downcaster(self, down: Convert) -> Convert:
        """Mark a function as the way back: programs that declare the older version read newer events by it."""
        if self.down is not None:
            raise SchemaError(f"{self} has a way back already: {self.down.__name__}")
        self.down = down
        return down

    def __str__(self) -> str:
        name = getattr(self.up, "__name__", "a function")
        return f"upcaster {name} ({self.event_type} {self.from_version} → {self.to_version})"


def upcaster(event_type: str, *, from_version: int, to_version: int = 0) -> Callable[[Convert], Upcaster]:
    """Mark a function as the step that brings data of an event type from one schema version to the next (or to `to_version`).

        @upcaster("OrderPlaced", from_version=1)
        def add_currency(data):
            return {**data, "currency": "EUR"}

    It takes and returns the event's data, as a dict of Python values (Decimal, datetime, …). It must be pure: it runs again for
    each reading, in whatever process reads. It may change the dict that it is given.
    """

    def mark(up: Convert) -> Upcaster:
        return Upcaster(event_type, from_version, to_version or from_version + 1, up)

    return mark


class Step(NamedTuple):
    """One conversion of a path. `name` says what it is, for errors."""

    name: str
    to_version: int
    convert: Convert

    def apply(self, data: Data) -> Data:
        """Return the data, converted.

        Raises:
            DecodeError: the conversion failed; it is named.
        """
        try:
            converted = self.convert(data)
        except Exception as error:  # whatever the user's function raises
            raise DecodeError(f"{self.name} failed: {error!r}; its data: {_shortened(data)}") from error
        if not isinstance(converted, Mapping):
            raise DecodeError(f"{self.name} returned {type(converted).__name__}; it must return the event's data, a dict")
        return dict(converted)


class Upcasting:
    """The paths from every version of every event type to today's.

    `event_types` are all that are known, `targets` today's version of each name that the program declares.

    Raises:
        SchemaError: an upcaster leads nowhere, back or to two places, or there is no path from a version of a declared type that
            is older than today's.
    """

    def __init__(
        self, event_types: Iterable[EventType], upcasters: Iterable[Upcaster] = (), targets: Mapping[str, int] | None = None
    ) -> None:
        self._types: dict[str, dict[int, EventType]] = {}
        for each in event_types:
            self._types.setdefault(each.name, {})[each.schema_version] = each
        self._up: dict[tuple[str, int], Upcaster] = {}
        self._down: dict[tuple[str, int], Upcaster] = {}
        for each_up in upcasters:
            self._add(each_up)
        declared = targets or {}
        self.targets = {name: declared.get(name, max(versions)) for name, versions in self._types.items()}
        self._paths: dict[tuple[str, int], tuple[Step, ...]] = {}
        self.outdated = {
            (name, version) for name, versions in self._types.items() for version in versions if version != self.targets[name]
        }
        """(event type, version) of all that is not written in today's shape."""
        for name, version in sorted(self.outdated):
            if name in declared and version < declared[name]:
                self.path(name, version)

    def path(self, event_type: str, schema_version: int) -> tuple[Step, ...]:
        """Return the steps from a version to today's; () for today's.

        Raises:
            SchemaError: there is no path; says where it ends and what would lead on.
        """
        known = self._paths.get((event_type, schema_version))
        if known is None:
            known = self._paths[event_type, schema_version] = tuple(self._find(event_type, schema_version))
        return known

    def convert(self, event_type: str, schema_version: int, data: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
        """Return today's version and the data in its shape.

        Raises:
            SchemaError: there is no path.
            DecodeError: a step failed.
        """
        if (event_type, schema_version) not in self.outdated:
            return schema_version, data
        converted = dict(data)
        for step in self.path(event_type, schema_version):
            converted = step.apply(converted)
        return self.targets[event_type], converted

    def _add(self, step: Upcaster) -> None:
        if step.event_type not in self._types:
            raise SchemaError(f"{step}: there is no event type {step.event_type!r}; known are {', '.join(sorted(self._types))}")
        if step.to_version <= step.from_version:
            raise SchemaError(f"{step} leads back, so that reading would never end: to_version must be above from_version")
        earlier = self._up.setdefault((step.event_type, step.from_version), step)
        if earlier is not step:
            raise SchemaError(f"{earlier} and {step} begin at the same version: give one of them")
        if step.down is not None:
            other = self._down.setdefault((step.event_type, step.to_version), step)
            if other is not step:
                raise SchemaError(f"the ways back of {other} and {step} begin at the same version: give one of them")

    def _find(self, name: str, version: int) -> list[Step]:
        target = self.targets[name]
        steps: list[Step] = []
        while version != target:
            step = self._upwards(name, version, target) if version < target else self._downwards(name, version, target)
            steps.append(step)
            version = step.to_version
        return steps

    def _upwards(self, name: str, version: int, target: int) -> Step:
        given = self._up.get((name, version))
        if given is not None and given.to_version <= target:
            return Step(str(given), given.to_version, self._completed(given.up, name, given.to_version))
        later = min(each for each in self._types[name] if version < each <= target) if self._has(name, target) else target
        advice = f"write an upcaster: @upcaster({name!r}, from_version={version})"
        return self._by_avro(name, version, later, advice)

    def _downwards(self, name: str, version: int, target: int) -> Step:
        given = self._down.get((name, version))
        if given is not None and given.from_version >= target and given.down is not None:
            down = self._completed(given.down, name, given.from_version)
            return Step(f"the way back of {given}", given.from_version, down)
        earlier = max((each for each in self._types[name] if target <= each < version), default=target)
        advice = f"this program declares version {target}: deploy one that knows version {version}, or give a downcaster"
        return self._by_avro(name, version, earlier, advice)

    def _completed(self, convert: Convert, name: str, version: int) -> Convert:
        """Return the function with its result held to the fields of the version that it leads to; defaults are filled in."""
        event_type = self._types[name].get(version)
        if event_type is None:
            return convert
        members = parse_with_defaults(event_type.definition)["fields"]
        fields = {member["name"] for member in members}
        defaults = {member["name"]: member["default"] for member in members if "default" in member}

        def completed(data: Data) -> Mapping[str, Any]:
            converted = convert(data)
            if not isinstance(converted, Mapping) or converted.keys() == fields:
                return converted
            missing, unknown = sorted(fields - converted.keys() - defaults.keys()), sorted(converted.keys() - fields)
            if missing or unknown:
                raise ValueError(f"its result lacks {missing} and has {unknown} beside the fields of version {version}")
            return copy.deepcopy(defaults) | dict(converted)

        return completed

    def _has(self, name: str, version: int) -> bool:
        return version in self._types[name]

    def _by_avro(self, name: str, version: int, to: int, advice: str) -> Step:
        writer, reader = self._types[name].get(version), self._types[name].get(to)
        said = f"events of {name} version {version} can't be read as version {to}"
        if writer is None or reader is None:
            raise SchemaError(f"{said}: version {to if reader is None else version} is not registered; {advice}")
        faults = unreadable(reader, writer)
        if faults:
            raise SchemaError(f"{said}: {'; '.join(faults)}; {advice}")
        return Step(f"{name} {version} → {to} by Avro's rules", to, _resolver(writer, reader))


def unreadable(reader: EventType, writer: EventType) -> list[str]:
    """Return why data of one version can't be read as another by Avro's rules, or would mean something else; [] if it can."""
    new, old = reader.schema, writer.schema
    return [str(fault) for fault in [*can_read(new, old), *changes_meaning(new, old)]]


def _resolver(writer: EventType, reader: EventType) -> Convert:
    """Return what reads data of one version as another, as Avro resolves schemas."""
    parsed = parse_with_defaults(reader.definition)
    simple = _by_fields(writer.parsed, reader.parsed, parsed)
    if simple is not None:
        return simple
    writer_schema = writer.parsed

    def resolve(data: Data) -> Data:
        buffer = BytesIO()
        schemaless_writer(buffer, writer_schema, data)
        buffer.seek(0)
        resolved = schemaless_reader(buffer, writer_schema, parsed)
        assert isinstance(resolved, dict)
        return copy.deepcopy(resolved)

    return resolve


def _by_fields(writer: Any, reader: Any, with_defaults: Any) -> Convert | None:
    """Return a resolver for the commonest change: fields were added or left out, and all others are what they were."""
    before = {field["name"]: field["type"] for field in writer["fields"]}
    definitions = (writer["__named_schemas"], reader["__named_schemas"])
    shared = definitions[0].keys() & definitions[1].keys() - {writer["name"], reader["name"]}
    if writer["name"] != reader["name"] or any(definitions[0][name] != definitions[1][name] for name in shared):
        return None
    for field in reader["fields"]:
        if "aliases" in field or (field["name"] in before and before[field["name"]] != field["type"]):
            return None
    kept = [field["name"] for field in reader["fields"]]
    added = {field["name"]: field["default"] for field in with_defaults["fields"] if field["name"] not in before}
    fixed = {name: value for name, value in added.items() if not isinstance(value, (dict, list))}
    changeable = {name: value for name, value in added.items() if name not in fixed}

    def resolve(data: Data) -> Data:
        known = fixed | copy.deepcopy(changeable) | data
        return {name: known[name] for name in kept}

    return resolve


def _shortened(data: Mapping[str, Any]) -> str:
    text = repr(dict(data))
    return text if len(text) <= 300 else f"{text[:300]}…"
