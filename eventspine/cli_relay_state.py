"""The commands about what a relay's processes share, wherever that is kept: status, pause and resume, and parked events."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Protocol

import typer
from rich.table import Table as ScreenTable

from .relay.state import View
from .terminal import AsJson, messages, screen

__all__ = ["KeptState", "add_state_commands"]


class KeptState(Protocol):
    """A relay's state, as those see it who look after it. `RelayState` and `DynamoDBRelayState` are such."""

    @property
    def relay_id(self) -> str: ...

    async def look(self, worker_id: str) -> View:
        """Return how things stand."""

    async def status(self) -> list[dict[str, Any]]:
        """Return a row for each shard."""

    async def pause(self, reason: str | None) -> None:
        """Pause the relay, or let it go on (None)."""

    async def parked(self) -> list[dict[str, Any]]:
        """Return what is parked, in order."""

    async def retry(self, stream_id: str | None) -> list[str]:
        """Ask for another try of a stream's parked events, or of all; return the streams."""

    async def discard(self, stream_id: str) -> int | None:
        """Give up the first parked event of a stream; return its position, None if there is none."""


WithState = Callable[[typer.Context, Callable[[KeptState], Awaitable[Any]]], Any]
"""Runs work on the state that the settings name, and returns what it returns."""


def add_state_commands(relay_app: typer.Typer, with_state: WithState) -> None:
    """Add the commands to a relay's."""
    help_text = "Events that could not be published, and those behind them in their streams."
    parked_app = typer.Typer(no_args_is_help=True, help=help_text)
    relay_app.add_typer(parked_app, name="parked")

    @relay_app.command("status")
    def relay_status(context: typer.Context, as_json: AsJson = False) -> None:
        """Show how far each shard is, how much is waiting, at what rate it goes, and which process publishes it."""

        async def work(state: KeptState) -> tuple[dict[str, Any], list[dict[str, Any]]]:
            view = await state.look("")
            facts = {"relay": state.relay_id, "shards": view.shards, "generation": view.generation}
            return facts | {"processes": view.workers, "paused": view.paused, "parked": view.parked}, await state.status()

        facts, rows = with_state(context, work)
        if as_json:
            typer.echo(json.dumps(facts | {"shards": rows}))
            return
        paused = f", paused ({facts['paused']})" if facts["paused"] else ""
        typer.echo(
            f"{facts['relay']}: {facts['shards']} shards (generation {facts['generation']}), {facts['processes']} processes, "
            f"{facts['parked']} events parked{paused}"
        )
        table = ScreenTable("shard", "state", "cursor", "lag", "lag s", "rate/s", "owner", "told s ago", box=None)
        for row in rows:
            numbers = [f"{row['position']:,}", f"{row['lag_events']:,}", f"{row['lag_s']:.1f}", f"{row['rate']:,.0f}"]
            table.add_row(str(row["shard"]), row["state"], *numbers, row["owner"] or "nobody", f"{row['seen_s']:.0f}")
        screen.print(table)

    @relay_app.command("pause")
    def relay_pause(context: typer.Context) -> None:
        """Let the relay's processes stop publishing, wherever they run, until `resume`."""
        with_state(context, lambda state: state.pause("paused"))
        typer.echo("paused; its processes stop within seconds")

    @relay_app.command("resume")
    def relay_resume(context: typer.Context) -> None:
        """Let a paused relay go on."""
        with_state(context, lambda state: state.pause(None))
        typer.echo("goes on")

    @parked_app.command("list")
    def parked_list(context: typer.Context, as_json: AsJson = False) -> None:
        """List the parked events, in order, with the reason."""
        rows = with_state(context, lambda state: state.parked())
        if as_json:
            typer.echo(json.dumps([row | {"parked_at": row["parked_at"].isoformat()} for row in rows]))
            return
        table = ScreenTable("position", "stream", "tries", "parked at", "reason", box=None)
        for row in rows:
            reason = f"{row['reason']}{' (to be tried again)' if row['retry'] else ''}"
            place = [str(row["global_position"]), row["stream_id"], str(row["tries"])]
            table.add_row(*place, f"{row['parked_at']:%Y-%m-%d %H:%M:%S}", reason)
        screen.print(table)

    @parked_app.command("retry")
    def parked_retry(
        context: typer.Context,
        stream_id: Annotated[str | None, typer.Argument(help="One stream; without it, all that are parked.")] = None,
    ) -> None:
        """Ask the relay to publish parked streams again, in order, behind what it has published since."""
        streams = with_state(context, lambda state: state.retry(stream_id))
        if not streams:
            messages.print("nothing is parked there", markup=False)
            raise typer.Exit(1)
        typer.echo(f"{len(streams)} streams will be tried again")

    @parked_app.command("discard")
    def parked_discard(context: typer.Context, stream_id: Annotated[str, typer.Argument(help="The parked stream.")]) -> None:
        """Give up publishing the first parked event of a stream (the log keeps it). Those behind it are published, late."""
        position = with_state(context, lambda state: state.discard(stream_id))
        if position is None:
            messages.print("nothing is parked there", markup=False)
            raise typer.Exit(1)
        typer.echo(f"position {position} will not be published")
