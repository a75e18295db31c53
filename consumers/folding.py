"""What a batch of events makes of a read model, decided without I/O: changes, rows to be fetched first, and what is set aside."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ..schemas import Event, EventspineError, ProjectionError
from .places import Item, Partition
from .projection import Projection
from .table import Key, NotLoaded, Rows, TableWriter, Write

__all__ = ["BEHIND_PARKED", "AllRows", "Aside", "Folded", "Refused", "fold", "fold_batch"]

_MANY = -1
BEHIND_PARKED = "waits behind a parked event of its stream"

AllRows = Mapping[str, Rows]
"""Rows by key, by table."""


class Refused(EventspineError):
    """Report that a batch can't be applied for what it holds; which of its events it is, is found by halving."""


class Aside(NamedTuple):
    """An event that is not applied, and why; `state` is one of parked, waiting (behind a parked one), skipped."""

    item: Item
    state: str
    reason: str


class Folded(NamedTuple):
    """What a batch comes to. While `missing` names rows (keys by table), it is not complete: fetch them and fold again.

    `reads` says that a handler asked for a row, be it one that the batch itself had made.
    """

    writes: list[Write]
    statements: list[tuple[str, tuple[Any, ...]]]
    missing: dict[str, set[tuple[Any, ...]]]
    asides: list[Aside]
    reads: bool = False


class _Pass(NamedTuple):
    folded: Folded
    failed: dict[int, str]  # by the event's place in the batch


def fold(projection: Projection, events: Sequence[Event], rows: AllRows | None = None) -> Folded:
    """Run the handlers over a batch, in order, and return what they wrote.

    Raises:
        ProjectionError: a handler failed; it names the event.
    """
    done = _run(projection, list(enumerate(events)), rows or {})
    for number, reason in done.failed.items():
        raise failure(projection, events[number], reason)
    return done.folded


def fold_batch(
    projection: Projection,
    items: Sequence[Item],
    rows: AllRows,
    parked: Mapping[Partition, Collection[str]],
    touched: dict[tuple[str, Key], list[int]] | None = None,
) -> Folded:
    """Run the handlers over a batch; what fails, or follows in a stream of which an event failed, is set aside.

    `parked` says of which streams events are set aside already. An event that failed is tried a second time before. `touched`
    takes, by table and key, the places in `items` of the events whose handlers changed a row, in order; -1 where a handler of
    batches did.

    Raises:
        ProjectionError: something failed, and the projection's policy is to halt.
        Refused: a handler of batches failed.
    """
    asides: dict[int, Aside] = {}
    blocked: set[tuple[Partition, str]] = {(partition, stream) for partition, streams in parked.items() for stream in streams}
    failed: dict[int, str] = {number: item.fault for number, item in enumerate(items) if item.fault}
    tried: set[int] = set(failed)
    while True:
        left: list[tuple[int, Event]] = []
        fresh = set(blocked)
        if not fresh and not failed:
            left = [(number, item.event) for number, item in enumerate(items) if item.event is not None]
        for number, item in enumerate(items) if fresh or failed else ():
            stream = (item.partition, item.stream_id)
            if item.event is None and not item.fault:
                continue
            if stream in fresh and projection.poison != "skip":
                asides[number] = Aside(item, "waiting", BEHIND_PARKED)
            elif number in failed:
                if projection.poison == "halt":
                    raise failure(projection, item.event or item, failed[number])
                asides[number] = Aside(item, "skipped" if projection.poison == "skip" else "parked", failed[number])
                if projection.poison == "park":
                    fresh.add(stream)
            elif item.event is not None:
                left.append((number, item.event))
        if touched is not None:
            touched.clear()
        done = _run(projection, left, rows, touched)
        new = {number: reason for number, reason in done.failed.items() if number in tried}
        if not done.failed or done.folded.missing:
            return done.folded._replace(asides=[asides[number] for number in sorted(asides)])
        tried |= done.failed.keys()
        failed |= new


def failure(projection: Projection, event: Event | Item, reason: str) -> ProjectionError:
    """Return the error that names an event."""
    if isinstance(event, Event):
        where = (
            f"{event.event_type} (stream {event.stream_id!r}, version {event.version}, global position {event.global_position})"
        )
    else:
        where = f"{event.event_type} (stream {event.stream_id!r}, global position {event.position})"
    return ProjectionError(
        f"projection {projection.name} failed at {where}: {reason}; nothing of this batch was written: mend the handler and "
        "start again"
    )


def _run(
    projection: Projection,
    events: Sequence[tuple[int, Event]],
    rows: AllRows,
    touched: dict[tuple[str, Key], list[int]] | None = None,
) -> _Pass:
    """Run the handlers once. Where something failed or is missing, what they wrote is not to be used.

    After a failure, the handlers of a projection that reads may see half of what the failed one wrote; so only the first failure
    counts then. And after a row that was missing, none does.
    """
    writers = projection.writers(rows)
    tables = [writer for writer in writers if isinstance(writer, TableWriter)]
    handlers = projection.handlers()
    failed: dict[int, str] = {}
    for number, event in events:
        handler = handlers.get(event.event_type)
        if handler is None:
            continue
        if touched is not None:
            for table in tables:
                table.note = _noting(touched, table.name, number)
        try:
            handler(event, *writers)
        except NotLoaded:
            pass
        except Exception as error:
            if not failed or not any(table.was_read for table in tables):
                failed[number] = _said(error)
    missing = {table.name: table.missing for table in tables if table.missing}
    if touched is not None:
        for table in tables:
            table.note = _noting(touched, table.name, _MANY)
    if not failed and not missing:
        for handler, chosen in projection.batch_handlers([event for _, event in events]):
            try:
                handler(chosen, *writers)
            except NotLoaded:
                missing = {table.name: table.missing for table in tables if table.missing}
            except Exception as error:
                raise Refused(_said(error)) from error
    if missing:
        return _Pass(Folded([], [], missing, []), {})
    if failed:
        return _Pass(Folded([], [], {}, []), failed)
    writes = [write for table in tables for write in table.flush()]
    statements = [each for writer in writers if not isinstance(writer, TableWriter) for each in writer.flush()]
    return _Pass(Folded(writes, statements, {}, [], any(table.was_read for table in tables)), {})


def _noting(touched: dict[tuple[str, Key], list[int]], table: str, number: int) -> Callable[[Key], None]:
    return lambda key: touched.setdefault((table, key), []).append(number)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, EventspineError) else repr(error)
