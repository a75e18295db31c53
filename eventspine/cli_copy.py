"""`eventspine copy`: a log copied into another store."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import typer
from rich.progress import Progress

from .connect import open_dynamodb, open_pool
from .store.copying import Copy, CopyEnd, copy_log
from .store.postgres.copying import PostgresCopy
from .terminal import messages, run

__all__ = ["copy"]


@asynccontextmanager
async def open_copy_end(dsn: str) -> AsyncIterator[CopyEnd]:
    """Open a store as one end of a copy. Raises SettingsError for a DSN that names no store."""
    if dsn.startswith("dynamodb:"):
        async with open_dynamodb(dsn) as table:
            from .store.dynamodb.copying import DynamoDBCopy

            yield DynamoDBCopy(table)
        return
    async with open_pool(dsn, max_connections=2) as pool:
        yield PostgresCopy(pool)


def copy(
    source: Annotated[str, typer.Option("--from", help="The store that is copied: its DSN.")],
    target: Annotated[str, typer.Option("--to", help="The store that it is copied into: empty, or with the beginning of it.")],
    verify: Annotated[bool, typer.Option(help="Compare both at the end, event by event.")] = True,
) -> None:
    """Copy a log into another store: ids, versions, positions, times and bytes as they are. Can be stopped and run again.

    What is appended meanwhile is copied by the next run. Snapshots, checkpoints and read models are no part of it.
    """

    async def work() -> Copy:
        with Progress(console=messages, transient=True, disable=not messages.is_terminal) as progress:
            task = progress.add_task("events", total=None)

            def show(done: Copy) -> None:
                progress.update(task, completed=done.before + done.now, total=done.end)

            async with open_copy_end(source) as one, open_copy_end(target) as other:
                return await copy_log(one, other, verify=verify, on_progress=show)

    began = time.monotonic()
    done = run(work())
    seconds = time.monotonic() - began
    if done.before:
        typer.echo(f"{done.before:,} events were there already")
    typer.echo(f"copied {done.now:,} events in {seconds:.1f} s ({done.now / seconds:,.0f}/s)")
    if verify:
        typer.echo(f"✓ the {done.end:,} events of both are the same")
