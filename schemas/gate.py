"""The gate that a new version of an event type passes before it is registered."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from io import BytesIO
from typing import Any, NamedTuple, Protocol

import msgspec
from fastavro import schemaless_reader, schemaless_writer

from .compatibility import Incompatibility, Level, conflicts
from .defaults import parse_with_defaults
from .errors import SchemaError
from .event_type import EventType
from .examples import examples_of
from .shape import plain_schema, shape_of

__all__ = ["Breach", "Counterexample", "VersionStep", "as_json", "breaches", "check_new_version", "find_counterexample"]


class VersionStep(Protocol):
    """What the gate asks of an upcaster: where it begins and ends."""

    event_type: str
    from_version: int
    to_version: int


class Counterexample(NamedTuple):
    """Data that one version writes and another can't read, or reads as something else."""

    written_by: int
    read_by: int
    data: dict[str, Any]
    outcome: str

    def __str__(self) -> str:
        return f"{as_json(self.data)}, written by version {self.written_by}, {self.outcome}"


class Breach(NamedTuple):
    """Two versions of an event type that do not go together under a level, and that no upcasters join."""

    event_type: str
    version: int
    earlier: int
    level: Level
    found: tuple[Incompatibility, ...]
    counterexample: Counterexample | None

    @property
    def what(self) -> str:
        """What is wrong, place by place."""
        versions = f"{self.event_type} version {self.version} does not go with version {self.earlier}"
        return f"{versions} ({self.level}): {'; '.join(map(str, self.found))}"

    @property
    def advice(self) -> str:
        """What to do next."""
        return (
            f'lead the earlier events over by a function: @upcaster("{self.event_type}", from_version={self.earlier}); '
            "or give what is new an event type of its own"
        )


def check_new_version(new: EventType, earlier: Sequence[EventType], level: Level, upcasters: Iterable[VersionStep] = ()) -> None:
    """Refuse a new version that does not go with the earlier ones under a level, unless upcasters lead from there to it.

    Beside Avro's rules, what changes the meaning of the same bytes is refused. An upcaster is the deliberate choice, for every
    level; programs that still read with the earlier version then need its way back, or a new deployment.

    Raises:
        SchemaError: says what is wrong field by field, with the smallest example, and what to do.
    """
    for breach in breaches(new, earlier, level, upcasters):
        example = f"; for example: {breach.counterexample}" if breach.counterexample else ""
        raise SchemaError(f"{breach.what}{example}; or {breach.advice}")


def breaches(
    new: EventType, earlier: Sequence[EventType], level: Level, upcasters: Iterable[VersionStep] = ()
) -> Iterator[Breach]:
    """Yield each earlier version that a new one does not go with, the newest of them first."""
    versions = {each.schema_version: each for each in earlier if each.schema_version < new.schema_version}
    versions[new.schema_version] = new
    steps = {each.from_version: each.to_version for each in upcasters if each.event_type == new.name}
    shapes = {version: shape_of(each.schema) for version, each in versions.items()}

    @cache
    def faults(older: int, newer: int) -> tuple[Incompatibility, ...]:
        found: list[Incompatibility] = []
        if level.backward:
            found += conflicts(shapes[newer], shapes[older], forward=False)
        if level.forward:
            found += conflicts(shapes[older], shapes[newer], forward=True)
        return tuple(dict.fromkeys(found))

    def joined(version: int) -> bool:
        """Whether a path with an upcaster in it leads to the new version; the rest of it is left to Avro's rules."""
        by_hand = False
        while version < new.schema_version:
            if steps.get(version, 0) > version:
                version, by_hand = steps[version], True
                continue
            later = min((each for each in versions if each > version), default=None)
            if version not in versions or later is None or faults(version, later):
                return False
            version = later
        return by_hand and version == new.schema_version

    olders = sorted((version for version in versions if version != new.schema_version), reverse=True)
    for older in [] if level is Level.NONE else olders if level.transitive else olders[:1]:
        found = faults(older, new.schema_version)
        if found and not joined(older):
            example = _counterexample(versions[older], new, level)
            yield Breach(new.name, new.schema_version, older, level, found, example)


def find_counterexample(writer: EventType, reader: EventType) -> Counterexample | None:
    """Return the smallest data that a writer's version writes, and a reader's can't read or reads as something else.

    It is read as Avro says, and readers in other languages do: the bytes by both schemas, then by the reader's logical types.
    """
    read = _reader(writer, reader)
    for data in examples_of(writer.schema):
        try:
            result = read(data)
        except Exception:  # fastavro raises whatever the conversion of a value raises; the rules say why
            outcome = f"can't be read by version {reader.schema_version}"
            return Counterexample(writer.schema_version, reader.schema_version, data, outcome)
        if not _same(data, result):
            outcome = f"reads as {as_json(result)} by version {reader.schema_version}"
            return Counterexample(writer.schema_version, reader.schema_version, data, outcome)
    return None


def as_json(value: Any) -> str:
    """Return data as JSON, as `event_data` shows it."""
    return msgspec.json.encode(value).decode()


def _counterexample(older: EventType, newer: EventType, level: Level) -> Counterexample | None:
    found = find_counterexample(older, newer) if level.backward else None
    return found or (find_counterexample(newer, older) if level.forward else None)


def _reader(writer: EventType, reader: EventType) -> Any:
    raw_writer, raw_reader = _raw(writer), _raw(reader)

    def read(data: Any) -> Any:
        raw = schemaless_reader(_written(writer.parsed, data), raw_writer, raw_reader)
        return schemaless_reader(_written(raw_reader, raw), reader.parsed, None)

    return read


def _written(schema: Any, data: Any) -> BytesIO:
    buffer = BytesIO()
    schemaless_writer(buffer, schema, data)
    buffer.seek(0)
    return buffer


def _raw(event_type: EventType) -> Any:
    """The schema without logical types: what the bytes are."""
    return parse_with_defaults(json.dumps(plain_schema(shape_of(event_type.schema))))


def _same(before: Any, after: Any) -> bool:
    """Whether data means what it did, apart from fields that only one of the schemas has."""
    if isinstance(before, dict) and isinstance(after, dict):
        return all(_same(value, after[key]) for key, value in before.items() if key in after)
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(_same, before, after))
    return bool(before == after)
