"""kill -9 of consumers, broker and Postgres under load, among freezes, cuts, retries (tests/fault/consumer_campaign.py).

`scripts/soak consumers` runs the same for as many kills, or as long, as you like.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.conftest import dsn_of, on_server
from tests.fault.consumer_campaign import Plan, fight, killed

SEED = int(os.environ.get("EVENTSPINE_SOAK_SEED", "266"))  # three static members that read their rows and park
KILLS = int(os.environ.get("EVENTSPINE_SOAK_KILLS", "0"))  # 0 = the suite's short version
ROUND = int(os.environ.get("EVENTSPINE_SOAK_ROUND", "1"))  # the first one: to see one again
OVER_S = 60 * float(os.environ.get("EVENTSPINE_SOAK_MINUTES", "0"))


async def test_campaign(postgres: str, migrated_template: str, kafka: str, stack: Any, tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    started = time.monotonic()
    for number in itertools.count(ROUND):
        plan = Plan.draw(f"{SEED}.{number}")
        before, began = Counter(counts), time.monotonic()
        print(f"\nround {number}: {plan}", flush=True)
        database = f"campaign_{os.getpid()}_{number}"
        await on_server(postgres, f"CREATE DATABASE {database} TEMPLATE {migrated_template}")
        try:
            dsn = dsn_of(postgres, database)
            folder = tmp_path / str(number)
            await fight(plan, 20 if KILLS else 4, dsn=dsn, bootstrap=kafka, servers=stack, folder=folder, counts=counts)
        finally:
            await on_server(postgres, f"DROP DATABASE {database} WITH (FORCE)")
        done = ", ".join(f"{count:,} {what.removeprefix('disturbances: ')}" for what, count in sorted((counts - before).items()))
        print(f"  {time.monotonic() - began:.0f} s: {done}", flush=True)
        if killed(counts) >= (KILLS or 1) and time.monotonic() - started >= OVER_S:
            break
    print(
        f"\nseed {SEED}: {killed(counts)} kills in {time.monotonic() - started:.0f} s, the oracle after each of {number} rounds"
    )
    for what, count in sorted(counts.items()):
        print(f"  {count:>9,}  {what}")
