"""`eventspine groups …`: worker groups, and the events that they parked."""

from __future__ import annotations

import json
from typing import Annotated, Any

import asyncpg
import typer
from rich.table import Table as ScreenTable

from .connect import open_pool
from .schemas.postgres import load_sql, translated
from .settings import Settings
from .terminal import AsJson, messages, run, screen

__all__ = ["groups_app"]

groups_app = typer.Typer(no_args_is_help=True, help="Worker groups and what they parked.")

_SQL = "eventspine.store.postgres"
_LIST = load_sql(_SQL, "sql/list_groups")
_PARKED = load_sql(_SQL, "sql/list_parked")
_RETRY = load_sql(_SQL, "sql/retry_parked")
_DISCARD = load_sql(_SQL, "sql/discard_parked")

Group = Annotated[str, typer.Argument(help="The group's id.")]


@groups_app.command("list")
def groups_list(context: typer.Context, as_json: AsJson = False) -> None:
    """List the groups: how far each is, how many workers it has, how many events it parked."""
    _show(_fetch(context, _LIST), as_json)


@groups_app.command("parked")
def groups_parked(context: typer.Context, group: Group, as_json: AsJson = False) -> None:
    """List a group's parked events, in order, with the reason."""
    _show(_fetch(context, _PARKED, group), as_json)


@groups_app.command("retry")
def groups_retry(
    context: typer.Context,
    group: Group,
    stream_id: Annotated[str | None, typer.Argument(help="One stream; without it, all that are parked.")] = None,
) -> None:
    """Ask the workers to try parked streams again, from their first parked event on."""
    streams = _fetch(context, _RETRY, group, stream_id)
    if not streams:
        messages.print("nothing is parked there", markup=False)
        raise typer.Exit(1)
    typer.echo(f"{len(streams)} streams will be tried again")


@groups_app.command("discard")
def groups_discard(
    context: typer.Context, group: Group, stream_id: Annotated[str, typer.Argument(help="The parked stream.")]
) -> None:
    """Give up a parked stream's first event for this group (the log keeps it). Retry the stream for those behind it."""
    rows = _fetch(context, _DISCARD, group, stream_id)
    if not rows:
        messages.print("nothing is parked there", markup=False)
        raise typer.Exit(1)
    typer.echo(f"gave up the event at position {rows[0]['global_position']}")


def _fetch(context: typer.Context, statement: str, *parameters: Any) -> list[asyncpg.Record]:
    settings: Settings = context.obj

    async def work() -> list[asyncpg.Record]:
        async with open_pool(settings.need_postgres(), max_connections=1) as pool, translated():
            rows: list[asyncpg.Record] = await pool.fetch(statement, *parameters)
            return rows

    return run(work())


def _show(rows: list[asyncpg.Record], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([dict(row) for row in rows], default=str))
    elif rows:
        table = ScreenTable(box=None)
        for name in dict(rows[0]):
            table.add_column(name.replace("_", " "), overflow="fold")
        for row in rows:
            table.add_row(*(f"{value:,}" if type(value) is int else str(value) for value in row))
        screen.print(table)
    else:
        messages.print("none", markup=False)
