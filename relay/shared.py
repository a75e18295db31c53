"""What the processes of a relay decide over one record that they all rewrite: who lives, and who publishes which shard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from .state import PinnedTopic, ShardReport, View, fair_share

__all__ = ["Lease", "SharedRecord", "beaten", "left", "pinned", "released", "status_of", "view_of"]

_CUT: frozenset[str | None] = frozenset({"reshard", "rebuild"})


class Lease(msgspec.Struct, frozen=True):
    """Who publishes a shard until when (seconds since 1970), and how it is doing."""

    worker: str | None = None
    until: float = 0.0
    state: str = "waiting"
    position: int = 0
    published: int = 0
    rate: float = 0.0
    updated_at: float = 0.0


class SharedRecord(msgspec.Struct, frozen=True):
    """One relay. `leases` by shard, `workers` when each was last seen, `topics` as they were first seen."""

    leases: tuple[Lease, ...]
    generation: int = 0
    paused: str | None = None
    discards: int = 0
    workers: dict[str, float] = {}
    topics: dict[str, PinnedTopic] = {}


def beaten(record: SharedRecord, worker: str, reports: Sequence[ShardReport], *, now: float, lease_s: float) -> SharedRecord:
    """Return the record after a worker said that it lives: its leases run longer, and free shards are its own up to its share."""
    workers = {name: seen for name, seen in record.workers.items() if seen > now - lease_s} | {worker: now}
    told = {report.shard: report for report in reports}
    leases = list(record.leases)
    for number, lease in enumerate(leases):
        report = told.get(number)
        if lease.worker == worker and report is not None:
            leases[number] = Lease(worker, now + lease_s, report.state, report.position, report.published, report.rate, now)
    mine = sum(lease.worker == worker for lease in leases)
    may = 0 if record.paused in _CUT else fair_share(len(leases), len(workers)) - mine
    for number, lease in enumerate(leases):
        if may > 0 and (lease.worker is None or lease.until < now):
            may -= lease.worker != worker
            leases[number] = Lease(worker, now + lease_s, "starting", lease.position, updated_at=now)
    return msgspec.structs.replace(record, workers=workers, leases=tuple(leases))


def released(record: SharedRecord, worker: str, shards: Sequence[int], *, now: float) -> SharedRecord:
    """Return the record after a worker gave shards back."""
    leases = tuple(
        Lease(position=lease.position, published=lease.published, updated_at=now)
        if lease.worker == worker and number in shards
        else lease
        for number, lease in enumerate(record.leases)
    )
    return msgspec.structs.replace(record, leases=leases)


def left(record: SharedRecord, worker: str) -> SharedRecord:
    """Return the record without a worker."""
    return msgspec.structs.replace(record, workers={name: seen for name, seen in record.workers.items() if name != worker})


def pinned(record: SharedRecord, topic: str, found: PinnedTopic) -> SharedRecord:
    """Return the record with a topic as it is now, unless it is noted already."""
    return msgspec.structs.replace(record, topics={topic: found} | record.topics)


def view_of(record: SharedRecord, worker: str, *, now: float, lease_s: float, retry: bool, parked: int) -> View:
    """Return how things stand for a worker. What is parked stands elsewhere."""
    alive = sum(seen > now - lease_s for seen in record.workers.values())
    held = [number for number, lease in enumerate(record.leases) if lease.worker == worker and lease.until > now]
    return View(len(record.leases), record.generation, record.paused, alive, held, retry, parked, record.discards)


def status_of(record: SharedRecord, *, now: float, last_position: int) -> list[dict[str, Any]]:
    """Return a row for each shard; `seen_s` is how old it is."""
    return [
        {
            "shard": number,
            "state": lease.state,
            "owner": lease.worker if lease.until > now else None,
            "position": lease.position,
            "published": lease.published,
            "rate": lease.rate,
            "lag_events": last_position - lease.position,
            "seen_s": now - lease.updated_at,
        }
        for number, lease in enumerate(record.leases)
    ]
