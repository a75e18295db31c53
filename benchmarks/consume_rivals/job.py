"""What a rival is told to do, and what it tells: nothing of eventspine is at hand here."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any, NamedTuple

from fastavro import parse_schema, schemaless_reader


class Job(NamedTuple):
    """So many events of a topic into a table, which is there."""

    bootstrap: str
    topic: str
    definition: str
    registry_url: str
    dsn: str
    table: str
    key: str
    columns: list[str]
    events: int
    batch: bool

    @property
    def update(self) -> str:
        others = [column for column in self.columns if column != self.key]
        return f"ON CONFLICT ({self.key}) DO UPDATE SET " + ", ".join(f"{column} = EXCLUDED.{column}" for column in others)

    def decoder(self) -> Callable[[bytes], dict[str, Any]]:
        """Return what reads a framed value by fastavro."""
        schema = parse_schema(json.loads(self.definition))

        def decode(value: bytes) -> dict[str, Any]:
            data = schemaless_reader(BytesIO(value[5:]), schema, None)
            assert isinstance(data, dict)
            return data

        return decode


def job() -> Job:
    return Job(**json.loads(sys.argv[1]))


class Tally:
    """Counts events that were committed, and prints the moments of the first and the last commit with the events between."""

    def __init__(self, events: int) -> None:
        self.done = False
        self._events = events
        self._first_s = self._last_s = 0.0
        self._first = self._count = 0

    def committed(self, events: int) -> None:
        self._count += events
        self._last_s = time.time()
        if not self._first_s:
            self._first_s, self._first = self._last_s, events
        self.done = self._count >= self._events

    def report(self) -> None:
        seen = {"first_s": self._first_s, "last_s": self._last_s, "events": self._count - self._first}
        print(json.dumps(seen), flush=True)
