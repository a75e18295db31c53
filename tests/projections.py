"""The projections that the fault tests run: what they must hold can be said over the log (tests/oracle.py)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from eventspine import Event, Projection, Sql, SqlWriter, Table, TableWriter, on, on_batch

POISON: Any = os.environ.get("EVENTSPINE_TEST_POISON", "park")
BROKEN = Path(os.environ.get("EVENTSPINE_TEST_BROKEN", "/nonexistent"))  # while this file exists, handlers have a fault


class OrderTotals(Projection):
    """Per customer a count and a sum (increments), per stream the last event (upserts)."""

    totals = Table(
        "order_totals", columns={"customer_id": "text", "orders": "bigint", "total_cents": "bigint"}, key="customer_id"
    )
    states = Table("order_states", columns={"stream_id": "text", "version": "bigint", "last_event": "text"}, key="stream_id")

    @on("OrderPlaced")
    def placed(self, event: Event, totals: TableWriter, states: TableWriter) -> None:
        totals.increment(customer_id=event.data["customer_id"], orders=1, total_cents=event.data["total_cents"])
        self.moved(event, totals, states)

    @on("OrderPaid", "OrderShipped")
    def moved(self, event: Event, _: TableWriter, states: TableWriter) -> None:
        states.upsert(stream_id=event.stream_id, version=event.version, last_event=event.event_type)


# The campaign's four. Each notes how often it applied which event; the database may refuse an event there (`REFUSED`).

CATEGORIES = ("Order", "Invoice")
BROKEN_CUSTOMER, REFUSED_CUSTOMER = "broken", "refused"
APPLIED = Table("applied", columns={"position": "bigint", "customer": "text", "times": "bigint"}, key="position")


def note(event: Event, applied: TableWriter) -> None:
    """Note that an event was applied, if the handler has no fault."""
    customer = event.data.get("customer_id")
    if customer == BROKEN_CUSTOMER and BROKEN.exists():
        raise ValueError("this handler has a fault")
    applied.upsert(position=event.global_position, customer=customer)
    applied.increment(position=event.global_position, times=1)


class Sums(Projection):
    """Increments, of rows that all partitions share."""

    categories = CATEGORIES
    poison = POISON
    applied = APPLIED
    sums = Table("sums", columns={"event_type": "text", "events": "bigint", "versions": "bigint"}, key="event_type")

    @on("OrderPlaced", "OrderPaid")
    def happened(self, event: Event, applied: TableWriter, sums: TableWriter) -> None:
        note(event, applied)
        sums.increment(event_type=event.event_type, events=1, versions=event.version)


class Chains(Projection):
    """Reads its rows: a hash chain of each stream, which tells order, loss and repetition."""

    categories = CATEGORIES
    poison = POISON
    applied = APPLIED
    chains = Table("chains", columns={"stream_id": "text", "events": "bigint", "link": "text"}, key="stream_id")

    @on("OrderPlaced", "OrderPaid")
    def happened(self, event: Event, applied: TableWriter, chains: TableWriter) -> None:
        note(event, applied)
        before = chains.get(stream_id=event.stream_id) or {"events": 0, "link": ""}
        linked = link(before["link"], event.version)
        chains.upsert(stream_id=event.stream_id, events=before["events"] + 1, link=linked)


class Journal(Projection):
    """SQL of its own, into a table that takes everything twice if told so."""

    categories = CATEGORIES
    poison = POISON
    applied = APPLIED
    sql = Sql(
        "CREATE TABLE IF NOT EXISTS journal (position bigint NOT NULL, stream_id text NOT NULL, version bigint NOT NULL)",
        "CREATE TABLE IF NOT EXISTS journal_streams (stream_id text PRIMARY KEY, last_version bigint, falls bigint)",
    )

    @on("OrderPlaced", "OrderPaid")
    def happened(self, event: Event, applied: TableWriter, sql: SqlWriter) -> None:
        note(event, applied)
        sql.execute("INSERT INTO journal VALUES ($1, $2, $3)", event.global_position, event.stream_id, event.version)

    @on_batch("OrderPlaced", "OrderPaid")
    def happened_at_once(self, events: list[Event], _: TableWriter, sql: SqlWriter) -> None:
        for event in events:
            sql.execute(_FOLLOW, event.stream_id, event.version)


_FOLLOW = """
INSERT INTO journal_streams AS mine VALUES ($1, $2, 0)
    ON CONFLICT (stream_id) DO UPDATE
    SET last_version = EXCLUDED.last_version, falls = mine.falls + (EXCLUDED.last_version <= mine.last_version)::int"""


class Entries(Projection):
    """Inserts a row for each event, and counts in a handler of batches."""

    categories = CATEGORIES
    poison = POISON
    applied = APPLIED
    entries = Table("entries", columns={"position": "bigint", "stream_id": "text", "version": "bigint"}, key="position")
    counts = Table("counts", columns={"event_type": "text", "events": "bigint"}, key="event_type")

    @on("OrderPlaced", "OrderPaid")
    def happened(self, event: Event, applied: TableWriter, entries: TableWriter, counts: TableWriter) -> None:
        note(event, applied)
        entries.insert(position=event.global_position, stream_id=event.stream_id, version=event.version)

    @on_batch("OrderPlaced", "OrderPaid")
    def happened_at_once(self, events: list[Event], _: TableWriter, __: TableWriter, counts: TableWriter) -> None:
        for event in events:
            counts.increment(event_type=event.event_type, events=1)


def link(before: str, version: int) -> str:
    """Return the next link of a stream's chain."""
    return hashlib.sha256(f"{before} {version}".encode()).hexdigest()[:16]
