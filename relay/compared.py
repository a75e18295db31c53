"""What verify compares and says: events, records, findings; and what it keeps of them."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

__all__ = ["FAULTS", "LATE_HEADERS", "Expected", "Finding", "Found", "Positions", "differences", "digest_of", "sorted_part"]

FAULTS: Final = ("missing", "duplicated", "reordered", "altered", "foreign")
LATE_HEADERS: Final = ("ce_publishedafter", "ce_latenumber")
LINK_HEADER: Final = "ce_previousposition"

_PAGE_BITS: Final = 10

Headers = Sequence[tuple[str, bytes | None]]


class Expected(NamedTuple):
    """An event, and the record that the relay makes of it."""

    position: int
    event_id: str
    key: bytes
    value: bytes
    headers: Headers


class Found(NamedTuple):
    """A record on Kafka. `position` is 0 where the header says none; `late` is its number among the late ones, 0 = in order."""

    offset: int
    position: int
    late: int
    key: bytes
    value: bytes
    headers: Headers


class Finding(NamedTuple):
    """What is wrong, and where. `offset` is None for an event without a record; the digests are of key, value and headers."""

    kind: str
    topic: str
    partition: int
    offset: int | None
    position: int
    event_id: str
    what: str
    expected_sha256: str = ""
    found_sha256: str = ""


class Positions:
    """A set of positions in the log: a bit for each, in pages that exist only where something is set."""

    def __init__(self) -> None:
        self._pages: dict[int, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, position: int) -> bool:
        return bool(self._pages.get(position >> _PAGE_BITS, 0) >> (position & (1 << _PAGE_BITS) - 1) & 1)

    def __iter__(self) -> Iterator[int]:
        """Yield them in order."""
        for number in sorted(self._pages):
            page = self._pages[number]
            while page:
                lowest = page & -page
                yield (number << _PAGE_BITS) + lowest.bit_length() - 1
                page ^= lowest

    def add(self, position: int) -> None:
        if position not in self:
            number = position >> _PAGE_BITS
            self._pages[number] = self._pages.get(number, 0) | 1 << (position & (1 << _PAGE_BITS) - 1)
            self._count += 1

    def discard(self, position: int) -> None:
        if position in self:
            number = position >> _PAGE_BITS
            self._pages[number] ^= 1 << (position & (1 << _PAGE_BITS) - 1)
            self._count -= 1
            if not self._pages[number]:
                del self._pages[number]


def sorted_part(values: Sequence[int]) -> list[int]:
    """Return the indices of a longest strictly rising subsequence.

    Source: https://en.wikipedia.org/wiki/Longest_increasing_subsequence#Efficient_algorithms
    """
    tails: list[int] = []  # the least value that ends a rising sequence of each length
    ends: list[int] = []  # its index
    before: list[int] = []
    for number, value in enumerate(values):
        length = bisect_left(tails, value)
        before.append(ends[length - 1] if length else -1)
        if length == len(tails):
            tails.append(value)
            ends.append(number)
        else:
            tails[length], ends[length] = value, number
    part, number = [], ends[-1] if ends else -1
    while number >= 0:
        part.append(number)
        number = before[number]
    return part[::-1]


def digest_of(record: Expected | Found) -> str:
    """Return the SHA-256 (hex) of a record's key, value and headers, each with its length before it."""
    digest = hashlib.sha256()
    for part in (record.key, record.value, *(part for name, value in record.headers for part in (name.encode(), value))):
        digest.update((-1 if part is None else len(part)).to_bytes(4, "big", signed=True))
        digest.update(part or b"")
    return digest.hexdigest()


def differences(event: Expected, record: Found) -> str:
    """Return what of a record is not as expected: "" if nothing."""
    said = [name for name in ("key", "value") if getattr(event, name) != getattr(record, name)]
    beside_it = LATE_HEADERS if record.late else (LINK_HEADER,)
    if any(name in beside_it for name, _ in record.headers):
        record = record._replace(headers=[each for each in record.headers if each[0] not in beside_it])
    if list(event.headers) != list(record.headers):
        wanted, has = dict(event.headers), dict(record.headers)
        names = sorted(name for name in wanted.keys() | has.keys() if wanted.get(name, 0) != has.get(name, 0))
        said.append(f"header {', '.join(names)}" if names else "order of headers")
    return " and ".join(said)
