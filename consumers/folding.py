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


def fold(projection: Projection, events: Sequence[Event], rows: AllRows | None = None) -> Folded:
    """Run the handlers over a batch, in order, and return what they wrote.

    Raises:
        ProjectionError: a handler failed; it names the event.
    """
    run = _Run(projection, rows or {})
    for number, event in enumerate(events):
        reason = run.handle(number, event)
        if reason:
            raise failure(projection, event, reason)
    folded = run.finish(events)
    for number, reason in run.spoiling.items():
        raise failure(projection, events[number], reason)
    return folded


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
    blocked = {(partition, stream) for partition, streams in parked.items() for stream in streams}
    known: dict[int, str] = {}
    once: set[int] = set()
    while True:
        if touched is not None:
            touched.clear()
        run = _Run(projection, rows, touched)
        held = set(blocked) if projection.poison != "skip" else set()
        asides: list[Aside] = []
        applied: list[Event] = []
        for number, item in enumerate(items):
            event = item.event
            if event is None and not item.fault:
                continue
            if held and (item.partition, item.stream_id) in held:
                asides.append(Aside(item, "waiting", BEHIND_PARKED))
                continue
            reason = item.fault or known.get(number)
            if not reason and event is not None:
                reason = run.handle(number, event)
                if not reason:
                    applied.append(event)
                    continue
            assert reason
            if projection.poison == "halt":
                raise failure(projection, event or item, reason)
            asides.append(Aside(item, "skipped" if projection.poison == "skip" else "parked", reason))
            if projection.poison == "park":
                held.add((item.partition, item.stream_id))
        folded = run.finish(applied)
        if folded.missing or not run.spoiling:
            return folded._replace(asides=asides)
        known |= {number: reason for number, reason in run.spoiling.items() if number in once}
        once |= run.spoiling.keys()


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


class _Run:
    """The handlers, run over the events of a batch one after another, and what they wrote.

    `spoiling` are events that failed, by number, and may have left half of what they do: what was written is not to be used then,
    nor what fails behind them in a projection that reads. While rows are missing, nothing that fails counts.
    """

    def __init__(self, projection: Projection, rows: AllRows, touched: dict[tuple[str, Key], list[int]] | None = None) -> None:
        self.spoiling: dict[int, str] = {}
        self._projection = projection
        self._handlers = projection.handlers()
        self._writers = projection.writers(rows)
        self._tables = [writer for writer in self._writers if isinstance(writer, TableWriter)]
        self._touched = touched

    def handle(self, number: int, event: Event) -> str:
        """Run an event's handler. One that fails before it writes is tried again; if it fails again, return why."""
        handler = self._handlers.get(event.event_type)
        if handler is None:
            return ""
        if self._touched is not None:
            self._note(number)
        written = [writer.written for writer in self._writers]
        try:
            handler(event, *self._writers)
            return ""
        except NotLoaded:
            return ""
        except Exception as error:  # its text alone is kept: it holds the frames that it went through, and so the whole batch
            reason = _said(error)
        return self._failed(number, event, written, reason)

    def finish(self, events: Sequence[Event]) -> Folded:
        """Run the handlers of batches over the events that were handled, and return what was written, or is missing."""
        if self._touched is not None:
            self._note(_MANY)
        if not self.spoiling and not self._missing():
            for handler, chosen in self._projection.batch_handlers(events):
                try:
                    handler(chosen, *self._writers)
                except NotLoaded:
                    break
                except Exception as error:
                    raise Refused(_said(error)) from error
        missing = self._missing()
        if missing or self.spoiling:
            return Folded([], [], missing, [])
        writes = [write for table in self._tables for write in table.flush()]
        statements = [each for writer in self._writers if not isinstance(writer, TableWriter) for each in writer.flush()]
        return Folded(writes, statements, {}, [], any(table.was_read for table in self._tables))

    def _failed(self, number: int, event: Event, written: list[int], reason: str) -> str:
        if self._missing() or (self.spoiling and any(table.was_read for table in self._tables)):
            return ""
        if not self.spoiling and written == [writer.written for writer in self._writers]:
            try:
                self._handlers[event.event_type](event, *self._writers)
                return ""
            except NotLoaded:
                return ""
            except Exception as error:
                reason = _said(error)
            if written == [writer.written for writer in self._writers]:
                return reason
        self.spoiling[number] = reason
        return ""

    def _missing(self) -> dict[str, set[Key]]:
        return {table.name: table.missing for table in self._tables if table.missing}

    def _note(self, number: int) -> None:
        """From now on, note that it is this event that changes rows."""
        assert self._touched is not None
        for table in self._tables:
            table.note = _noting(self._touched, table.name, number)


def _noting(touched: dict[tuple[str, Key], list[int]], table: str, number: int) -> Callable[[Key], None]:
    return lambda key: touched.setdefault((table, key), []).append(number)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, EventspineError) else repr(error)
