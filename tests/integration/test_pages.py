"""The pages' programs do what the pages say."""

from __future__ import annotations

import asyncio
import re
import textwrap
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import asyncpg

from eventspine import EventType, PostgresEventStore

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n(?P<output>(?:    [^\n]*\n)+))?", re.DOTALL)


def record(name: str, **fields: str) -> EventType:
    members = [{"name": field, "type": kind} for field, kind in fields.items()]
    return EventType.from_schema({"type": "record", "name": name, "fields": members})


async def test_the_store_page(pool: asyncpg.Pool) -> None:
    store = PostgresEventStore(pool)
    await store.register(
        [
            record("OrderPlaced", customer_id="string", total_cents="long"),
            record("OrderPaid", amount_cents="long"),
            record("SeatTaken", seat="string"),
        ]
    )
    await run_page(DOCS / "store.md", store, pool)


async def test_the_schemas_page(pool: asyncpg.Pool) -> None:
    await run_page(DOCS / "schemas.md", PostgresEventStore(pool), pool)


async def run_page(page: Path, store: PostgresEventStore, pool: asyncpg.Pool) -> None:
    """Run a page's blocks as one program, in their order; each prints what stands behind it."""
    blocks = list(BLOCK.finditer(page.read_text(encoding="utf-8")))
    assert len(blocks) > 5
    program = "".join(f"{block['code']}printed()\n" for block in blocks)
    screen, outputs = StringIO(), list[str]()

    def printed() -> None:
        outputs.append(screen.getvalue())
        screen.truncate(screen.seek(0))

    names = {"asyncio": asyncio, "PostgresEventStore": PostgresEventStore, "store": store, "pool": pool, "printed": printed}
    exec(compile(f"async def page():\n{textwrap.indent(program, '    ')}", str(page), "exec", dont_inherit=True), names)
    with redirect_stdout(screen):
        async with asyncio.timeout(60):
            await names["page"]()  # type: ignore[operator]
    for block, output in zip(blocks, outputs, strict=True):
        assert output == textwrap.dedent(block["output"] or ""), block["code"]
