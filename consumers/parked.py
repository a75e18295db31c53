"""Events that were set aside, as rows."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from .places import Partition

__all__ = ["Asked", "Kept", "Parked", "read_headers", "write_headers"]

_read = msgspec.json.Decoder(dict[str, bytes])
_write = msgspec.json.Encoder()


class Kept(NamedTuple):
    """A record as it is kept beside a parked event: so that a retry needs no Kafka. Headers as `write_headers` writes them."""

    headers: bytes
    key: bytes
    value: bytes


class Parked(NamedTuple):
    """An event that was set aside. `state` is one of parked, waiting (behind a parked one), skipped."""

    partition: Partition
    position: int
    late: int
    stream_id: str
    event_type: str
    state: str
    reason: str
    tries: int
    kept: Kept


class Asked(NamedTuple):
    """What somebody asks for a parked stream: retry, discard (the first event) or discard-all."""

    partition: Partition
    stream_id: str
    what: str


def read_headers(written: bytes) -> dict[str, bytes]:
    return _read.decode(written)


def write_headers(headers: dict[str, bytes]) -> bytes:
    return _write.encode(headers)
