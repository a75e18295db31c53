"""What a topic's partition holds against what it should hold, decided without I/O: record by record, in one pass.

A `Walk` is fed from two sides: with the events that the log sends to the partition, in order, and with the records that Kafka
has, in order of their offsets. It names

    missing      an event that has no record
    duplicated   a record of an event that has one already
    reordered    a record that is not in its place: the fewest whose removal leaves the positions rising
    altered      a record whose key, value or headers are not what the relay publishes for the event
    foreign      a record whose position the log does not have, or has for another partition

and counts what is no fault: `late` (published behind its place, as its headers say, and filling a hole), `repeated` (without
transactions: what a crash made the relay publish again), `parked`, `expired` (retention cut the head of the partition off).

Memory is bounded by the records that are looked at together, and by one bit for each event that has no record so far.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Final, Literal, NamedTuple

from .compared import LATE_HEADERS, Expected, Finding, Found, Positions, differences, digest_of, sorted_part

__all__ = ["LookUp", "Need", "Walk"]

_RECENT: Final = 1 << 16  # so many of the last records may be repeated by a crash, in a partition


class LookUp(NamedTuple):
    """A wish for events at positions: answered by `Walk.tell`, with None for each that does not belong to the partition."""

    positions: list[int]


Need = LookUp | Literal["records", "expected", "nothing"]


class Walk:
    """Compares one partition. Feed `expected` and `records`, call `step()`, and do what it asks for.

    `limit` is the last position that is looked at. `expired` says that retention cut the partition's head off, `repeats` that the
    relay works without transactions. `parked` are positions that are set aside. `look_ahead` is how many records are looked at
    together to tell which of them is out of place. Each finding goes to `name`; what is missing is known at the end: `missing`.

    Set `finished` when all events were fed, `ended` when all records were, and `full` when no more records can be held.
    """

    def __init__(
        self,
        topic: str,
        partition: int,
        *,
        limit: int,
        name: Callable[[Finding], None],
        expired: bool = False,
        repeats: bool = False,
        parked: Set[int] = frozenset(),
        look_ahead: int = 256,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.limit = limit
        self.expected: deque[Expected] = deque()
        self.records: deque[Found] = deque()
        self.finished = False
        self.ended = False
        self.full = False
        self.counts: Counter[str] = Counter()
        self._name = name
        self._parked = parked
        self._look_ahead = look_ahead
        self._missing = Positions()  # so far
        self._early = Positions()  # records of these were seen, and the log has not come to them
        self._walked = 0  # how far the log was compared
        self._last_late = 0
        self._head_is_cut = expired
        self._expired_to = 0
        self._known: dict[int, Expected | None] = {0: None}
        self._judged: dict[int, str] = {}  # offset of a record beyond `_walked`: in place, early, or a twin of one in place
        self._repeats = repeats
        self._recent: list[int] = []  # positions of the last records in place
        self._repeat_at = 0
        self._repeated: list[Found] = []  # of a repetition that has not come to its end

    def step(self) -> Need:
        """Compare as far as possible; return what is needed to go on: "nothing" at the end."""
        expected, records = self.expected, self.records
        while True:
            if not expected:
                if not self.finished:
                    return "expected"
                if not records:
                    if self.ended:
                        self._break_repetition()
                    return "nothing" if self.ended else "records"
                need = self._take_odd(records[0])
            elif records:
                record, event = records[0], expected[0]
                if record.position == event.position and not record.late and event.position not in self._early:
                    records.popleft()
                    expected.popleft()
                    self._take_in_place(event, record)
                    continue
                if event.position in self._early:
                    self._early.discard(event.position)
                    self._walked = event.position
                    expected.popleft()
                    continue
                if event.position in self._parked:
                    self._miss(expected.popleft())
                    continue
                need = self._take_odd(record)
            elif self.ended:
                event = expected.popleft()
                if event.position in self._early:
                    self._early.discard(event.position)
                else:
                    self._miss(event)
                continue
            else:
                return "records"
            if need is not None:
                return need

    def tell(self, found: Mapping[int, Expected | None]) -> None:
        """Answer a `LookUp`."""
        ahead = {each.position for each in self._ahead()}
        self._known = {position: each for position, each in self._known.items() if position in ahead} | {0: None} | dict(found)

    def missing(self) -> Iterator[int]:
        """Yield the positions of events without a record, in order; those that are parked or expired are counted instead.

        To be called once, at the end.
        """
        expired_to = self.limit if self._head_is_cut else self._expired_to
        for position in self._missing:
            if position in self._parked:
                self.counts["parked"] += 1
            elif position <= expired_to:
                self.counts["expired"] += 1
            else:
                self.counts["missing"] += 1
                yield position

    def _take_in_place(self, event: Expected, record: Found) -> None:
        self.counts["in place"] += 1
        if self._head_is_cut:  # this is the first that is left
            self._expired_to, self._head_is_cut = self._walked, False
        self._walked = event.position
        if self._repeats:
            self._break_repetition()
            self._recent.append(event.position)
            if len(self._recent) > 2 * _RECENT:
                del self._recent[:_RECENT]
        if record.value != event.value or record.key != event.key or record.headers != event.headers:
            self._compare(event, record)  # it may be the link to the record before

    def _miss(self, event: Expected) -> None:
        self._missing.add(event.position)
        self._walked = event.position

    def _take_odd(self, record: Found) -> Need | None:
        """Take a record that is not simply the next one; return what is needed to judge it, None if it was taken."""
        position = record.position
        if position not in self._known:
            return self._look_up()
        event = self._known[position]
        if event is None:
            self.records.popleft()
            said = (
                "the log does not send an event at this position here" if position else "its headers name no position in the log"
            )
            self._add("foreign", record, said)
        elif position > self.limit:
            self.records.popleft()
        elif record.late:
            self.records.popleft()
            self._take_late(event, record)
        elif position > self._walked and position not in self._early:
            return self._take_ahead(event, record)
        else:
            self.records.popleft()
            self._take_back(event, record)
        return None

    def _take_ahead(self, event: Expected, record: Found) -> Need | None:
        """Take a record that comes before its event: either those in between are missing, or it is out of place."""
        judged = self._judged.get(record.offset)
        if judged is None:
            need = self._judge()
            if need is not None:
                return need
            judged = self._judged[record.offset]
        if judged != "in place":
            self.records.popleft()
            if judged == "twin":
                self._duplicate(event, record)
            else:
                self._early.add(record.position)
                self._add("reordered", record, "comes before its place", event)
                self._compare(event, record)
            return None
        expected = self.expected
        while expected and expected[0].position < record.position:
            passed = expected.popleft()
            if passed.position in self._early:
                self._early.discard(passed.position)
                self._walked = passed.position
            else:
                self._miss(passed)
        if not expected:
            if not self.finished:
                return "expected"
        elif expected[0].position == record.position:
            return None
        self.records.popleft()  # the log said that the event belongs here, and then did not bring it
        self._add("foreign", record, "the log had this event, and no longer has it")
        return None

    def _take_late(self, event: Expected, record: Found) -> None:
        """Take a record that says of itself that it comes late: fine, if it fills a hole, or one that the walk will come to."""
        if record.position in self._missing:
            self._missing.discard(record.position)
        elif record.position > self._walked and record.position not in self._early:
            self._early.add(record.position)
        else:
            if self._repeats and record.late <= self._last_late:
                self.counts["repeated"] += 1
                self._compare(event, record)
            else:
                self._duplicate(event, record)
            return
        self._last_late = max(record.late, self._last_late)
        self.counts["late"] += 1
        self._compare(event, record)

    def _take_back(self, event: Expected, record: Found) -> None:
        """Take a record whose place is behind us: it came late without saying so, or there was one."""
        if record.position in self._missing:
            self._missing.discard(record.position)
            self._add("reordered", record, "comes after its place", event)
            self._compare(event, record)
        elif self._repeats and self._repeats_recent(record):
            self._compare(event, record)
        else:
            self._duplicate(event, record)

    def _repeats_recent(self, record: Found) -> bool:
        """Whether a record can be of a repetition: positions went back, and rise again as they did, to where they were."""
        recent = self._recent
        if not (self._repeated and self._repeat_at < len(recent) and recent[self._repeat_at] == record.position):
            self._repeat_at = bisect_left(recent, record.position)
            if self._repeat_at == len(recent) or recent[self._repeat_at] != record.position:
                return False
        self._repeat_at += 1
        self._repeated.append(record)
        if self._repeat_at == len(recent):
            self.counts["repeated"] += len(self._repeated)
            self._repeated.clear()
        return True

    def _break_repetition(self) -> None:
        """Name what looked like a repetition and did not come to where it began."""
        for record in self._repeated:
            self._add("duplicated", record, "there was a record of this event")
        self._repeated.clear()

    def _duplicate(self, event: Expected, record: Found) -> None:
        differs = differences(event, record)
        self._add(
            "duplicated",
            record,
            "there is another record of this event" + (f", with another {differs}" if differs else ""),
            event,
        )

    def _compare(self, event: Expected, record: Found) -> None:
        if record.late:
            record = record._replace(headers=[each for each in record.headers if each[0] not in LATE_HEADERS])
        if differences(event, record):
            self._alter(event, record)

    def _alter(self, event: Expected, record: Found) -> None:
        self.counts["altered"] += 1
        self._name(
            Finding(
                "altered", self.topic, self.partition, record.offset, record.position, event.event_id,
                f"another {differences(event, record)}", digest_of(event), digest_of(record),
            )
        )  # fmt: skip

    def _add(self, kind: str, record: Found, what: str, event: Expected | None = None) -> None:
        self.counts[kind] += 1
        event_id = (
            event.event_id
            if event
            else next((value or b"" for name, value in record.headers if name == "ce_id"), b"").decode(errors="replace")
        )
        self._name(Finding(kind, self.topic, self.partition, record.offset, record.position, event_id, what))

    def _ahead(self) -> list[Found]:
        return [self.records[number] for number in range(min(self._look_ahead, len(self.records)))]

    def _look_up(self) -> Need:
        if len(self.records) < self._look_ahead and not (self.ended or self.full):
            return "records"
        return LookUp(sorted({each.position for each in self._ahead()} - self._known.keys()))

    def _judge(self) -> Need | None:
        """Judge which of the next records are in place, among those beyond `_walked`: a longest rising sequence.

        Only the first half is kept, so that each is judged by what follows it.
        """
        ahead = self._ahead()
        if (len(ahead) < self._look_ahead and not (self.ended or self.full)) or any(
            each.position not in self._known for each in ahead
        ):
            return self._look_up()
        candidates = [
            each
            for each in ahead
            if self._walked < each.position <= self.limit
            and not each.late
            and self._known[each.position] is not None
            and each.position not in self._early
        ]
        rising = sorted_part([each.position for each in candidates])
        in_place = {candidates[number].position for number in rising}
        offsets = {candidates[number].offset for number in rising}
        keep = len(ahead) if self.ended and len(ahead) == len(self.records) else (len(ahead) + 1) // 2
        last_kept = ahead[keep - 1].offset
        self._judged = {
            each.offset: "in place" if each.offset in offsets else "twin" if each.position in in_place else "early"
            for each in candidates
            if each.offset <= last_kept
        }
        return None
