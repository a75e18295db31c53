"""What the commands share: where they print, and how they run."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

import msgspec
import typer
from rich.console import Console

from .schemas import Event

__all__ = ["AsJson", "messages", "print_event", "run", "screen"]

screen = Console()
messages = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

Result = TypeVar("Result")


def run(work: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(work)


def print_event(event: Event, as_json: bool) -> None:
    if as_json:
        typer.echo(msgspec.json.encode(event))
        return
    when = event.created_at.strftime("%Y-%m-%d %H:%M:%S") if event.created_at else ""
    place = f"{event.global_position:>8}  {when}  {event.stream_id}@{event.version}  {event.event_type}"
    tags = f"  [{' '.join(event.tags)}]" if event.tags else ""
    typer.echo(f"{place}  {msgspec.json.encode(event.data).decode()}{tags}")
