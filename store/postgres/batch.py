"""A batch as the parameters of append_events(), and what it returns, without I/O."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, repeat
from typing import Any

from ..batch import AppendRequest, Outcome
from ..protocol import Expected
from ..query import QueryItem

__all__ = ["arguments", "array_literal", "item_arguments", "outcomes_of"]

_EXPECTED_CODES = {Expected.ANY: -1, Expected.STREAM_EXISTS: -2, Expected.NO_STREAM: 0}


def arguments(batch: Sequence[AppendRequest], *, hash_chain: bool) -> tuple[Any, ...]:
    """Lay out a batch as the parameters of append_events(), in their order."""
    parts = [part for request in batch for part in request.parts]
    encoded = [each for part in parts for each in part.encoded]
    streams: dict[str, int] = {}
    part_stream = [streams.setdefault(part.stream_id, len(streams) + 1) for part in parts]
    kinds: dict[tuple[str, int], int] = {}
    event_kind = [kinds.setdefault((each.event_type, each.schema_version), len(kinds) + 1) for each in encoded]
    conditions = [
        (number, request.condition.after, item)
        for number, request in enumerate(batch, 1)
        if request.condition is not None
        for item in request.condition.query.items or (QueryItem(),)
    ]
    items: tuple[Any, ...] = (None,) * 6
    if conditions:
        numbers, after, wanted = zip(*conditions, strict=True)
        items = (numbers, after, *item_arguments(wanted))
    one_each = len(parts) == len(encoded)
    return (
        list(streams),
        [part.expected if type(part.expected) is int else _EXPECTED_CODES[part.expected] for part in parts],  # type: ignore[index]
        None if len(parts) == len(batch) else [number for number, request in enumerate(batch, 1) for _ in request.parts],
        None if len(streams) == len(parts) else part_stream,
        None if one_each else [len(part.encoded) for part in parts],
        *items,
        [event_type for event_type, _ in kinds],
        [schema_version for _, schema_version in kinds],
        None if len(kinds) == 1 else event_kind,
        [each.event_id for each in encoded],
        [each.json for each in encoded],
        [each.metadata_json for each in encoded],
        [array_literal(each.tags) if each.tags else None for each in encoded] if any(each.tags for each in encoded) else None,
        [each.payload for each in encoded],
        hash_chain,
    )


def outcomes_of(row: Any) -> Sequence[Outcome]:
    """Return the outcomes that append_events() returned, one for each part, in order."""
    assert row is not None, "it returns one row"
    kinds, versions, positions, moments = row
    if kinds is None:
        return list(zip(repeat("appended"), versions, count(positions[0]), repeat(moments[0])))  # type: ignore[arg-type]
    return [Outcome(*each) for each in zip(kinds, versions, positions, moments, strict=True)]


def item_arguments(items: Sequence[QueryItem]) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """Lay out query items as find_events() takes them: tags, event types, categories, correlations."""
    return (
        [array_literal(item.tags) for item in items],
        [array_literal(item.event_types) for item in items],
        [array_literal(item.categories) for item in items],
        [item.correlation_id for item in items],
    )


def array_literal(texts: Sequence[str]) -> str:
    """Write texts as a Postgres array literal, for arrays of arrays of different lengths."""
    quoted = (text.replace("\\", "\\\\").replace('"', '\\"') for text in texts)
    return "{" + ",".join(f'"{text}"' for text in quoted) + "}"
