"""`eventspine import …`: bring in what another event store holds."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from .connect import open_pool
from .schema_module import load_schema_module
from .schemas import SettingsError
from .settings import Settings
from .store.postgres import PostgresEventStore
from .terminal import messages, run

__all__ = ["import_app"]

import_app = typer.Typer(no_args_is_help=True, help="Bring in what another event store holds.")

_SAY_EVERY_S = 2.0


@import_app.callback()
def _group() -> None:
    """Bring in what another event store holds."""


@import_app.command("kurrent")
def import_kurrent(
    context: typer.Context,
    source: Annotated[str, typer.Option("--from", help="esdb://user:password@host:port?tls=true&tlsCaFile=ca.pem")],
    batch_events: Annotated[int, typer.Option(min=1, help="How many events are recorded at once.")] = 2000,
    verify: Annotated[bool, typer.Option(help="Compare all streams at the end; reads the source once more.")] = True,
) -> None:
    """Copy an EventStoreDB or KurrentDB into an empty store, in its order. Stopped at any moment, it goes on where it was."""
    try:
        from .store.kurrent import KurrentConnection
        from .store.kurrent.copying import Copied, copy_events, verify_copy
    except ImportError as error:
        raise SettingsError('this import needs more packages: pip install "eventspine[kurrent]"') from error
    settings: Settings = context.obj
    declared = load_schema_module(settings.schema_modules())
    began = time.monotonic()
    said_at = began

    def say(copied: Copied) -> None:
        nonlocal said_at
        now = time.monotonic()
        if now - said_at >= _SAY_EVERY_S:
            said_at = now
            rate = copied.events / (now - began)
            _say(f"{copied.events:,} events copied ({rate:,.0f}/s), up to position {copied.position:,}")

    async def work() -> Any:
        async with open_pool(settings.need_postgres(), max_connections=2) as pool, KurrentConnection(source) as connection:
            store = PostgresEventStore(pool, max_event_bytes=settings.max_event_bytes)
            await store.register(declared.event_types, declared.upcasters)
            copied = await copy_events(connection, store, batch_events=batch_events, on_progress=say)
            rate = copied.events / max(time.monotonic() - began, 0.001)
            left_out = f"; {copied.hidden:,} that their streams hide are left out" if copied.hidden else ""
            _say(f"copied {copied.events:,} events ({rate:,.0f}/s), up to position {copied.position:,}{left_out}")
            return await verify_copy(connection, store) if verify else None

    verified = run(work())
    if verified is not None:
        _say(f"verified: {verified.events:,} events in {verified.streams:,} streams, each as in the source")
        if verified.renumbered:
            _say(f"{verified.renumbered:,} streams do not begin at revision 0 there or have gaps; here they count from version 1")


def _say(line: str) -> None:
    messages.print(line, markup=False, highlight=False, soft_wrap=True)
