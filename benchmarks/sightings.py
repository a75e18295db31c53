"""Hears of each row of `Sightings` that is committed: `python -m benchmarks.sightings DSN EVENTS`.

A trigger sends the moments of the appends with the rows' own commit, so nothing is polled, and nothing is asked. It says `ready`,
and at the end a JSON list of milliseconds from append to notification, in the order of the appends. Both are read from one clock.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import asyncpg

_LIMIT_S = 180.0

TRIGGER = """
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('sightings', string_agg(sent_ns::text, ','))
       FROM (SELECT sent_ns, (row_number() OVER () - 1) / 300 AS part FROM new) AS numbered GROUP BY part;
    RETURN NULL;
END
$$;
CREATE TRIGGER tell AFTER INSERT ON sightings REFERENCING NEW TABLE AS new FOR EACH STATEMENT EXECUTE FUNCTION tell();
"""


async def main() -> None:
    dsn, events = sys.argv[1], int(sys.argv[2])
    connection = await asyncpg.connect(dsn)
    seen: list[tuple[int, int]] = []
    done = asyncio.Event()

    def told(_connection: object, _pid: int, _channel: str, payload: object) -> None:
        now_ns = time.time_ns()
        seen.extend((int(sent_ns), now_ns) for sent_ns in str(payload).split(","))
        if len(seen) >= events:
            done.set()

    await connection.add_listener("sightings", told)
    print("ready", flush=True)
    async with asyncio.timeout(_LIMIT_S):
        await done.wait()
    print(json.dumps([(came_ns - went_ns) / 1e6 for went_ns, came_ns in sorted(seen)]), flush=True)
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main())
