"""The pages' programs do what the pages say."""

from __future__ import annotations

import asyncio
import re
import textwrap
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import asyncpg
import pytest

from eventspine import EventType, PostgresEventStore

PAGE = Path(__file__).parents[2] / "docs" / "store.md"
BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n(?P<output>(?:    [^\n]*\n)+))?", re.DOTALL)


def record(name: str, **fields: str) -> EventType:
    members = [{"name": field, "type": kind} for field, kind in fields.items()]
    return EventType.from_schema({"type": "record", "name": name, "fields": members})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_the_store_page(pool: asyncpg.Pool) -> None:
    """One program in the order of the page; each block prints what stands behind it."""
    store = PostgresEventStore(pool)
    await store.register(
        [
            record("OrderPlaced", customer_id="string", total_cents="long"),
            record("OrderPaid", amount_cents="long"),
            record("SeatTaken", seat="string"),
        ]
    )
    blocks = list(BLOCK.finditer(PAGE.read_text(encoding="utf-8")))
    assert len(blocks) > 8
    program = "".join(f"{block['code']}printed()\n" for block in blocks)
    screen, outputs = StringIO(), list[str]()

    def printed() -> None:
        outputs.append(screen.getvalue())
        screen.truncate(screen.seek(0))

    names = {"asyncio": asyncio, "store": store, "pool": pool, "printed": printed}
    exec(compile(f"async def page():\n{textwrap.indent(program, '    ')}", str(PAGE), "exec"), names)
    with redirect_stdout(screen):
        async with asyncio.timeout(60):
            await names["page"]()  # type: ignore[operator]
    for block, output in zip(blocks, outputs, strict=True):
        assert output == textwrap.dedent(block["output"] or ""), block["code"]
