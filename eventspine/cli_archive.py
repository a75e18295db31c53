"""`eventspine archive …`: the log as files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from .cli_audit import parse_head
from .connect import open_pool
from .settings import Settings
from .store.postgres.archive import export_log, restore_log, verify_archive
from .terminal import messages, run

__all__ = ["archive_app"]

archive_app = typer.Typer(no_args_is_help=True, help="The log as files: to keep, to check without a database, to restore.")

Folder = Annotated[Path, typer.Argument(help="The archive's folder.", exists=True, file_okay=False)]


@archive_app.command("export")
def archive_export(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The archive's folder; made if it is not there.", file_okay=False)],
    until: Annotated[int | None, typer.Option(min=1, help="Export up to this position at most.")] = None,
    events_per_file: Annotated[int, typer.Option(min=1, help="About how many events a file holds.")] = 1_000_000,
) -> None:
    """Write what the folder does not hold yet, behind its last file. The log stays as it is."""
    settings: Settings = context.obj
    folder.mkdir(parents=True, exist_ok=True)

    async def work() -> list[Path]:
        async with open_pool(settings.need_postgres(), max_connections=1) as pool:
            with _progress() as show:
                return await export_log(pool, folder, until=until, events_per_file=events_per_file, on_progress=show)

    written = run(work())
    for path in written:
        typer.echo(path)
    if not written:
        typer.echo("nothing to do")


@archive_app.command("verify")
def archive_verify(
    folder: Folder,
    head: Annotated[str | None, typer.Option(help="POSITION:DIGEST of a link in it, from somebody you trust.")] = None,
) -> None:
    """Check an archive, event by event. Needs no database. Exits with 1 if anything is not as it was recorded."""
    with _progress() as show:
        report = verify_archive(folder, head=parse_head(head), on_progress=lambda done: show(done, 0))
    position, digest = report.head
    typer.echo(f"✓ {position - report.after:,} events in {report.files:,} files are what was recorded")
    typer.echo(f"head {position}:{digest}")


@archive_app.command("restore")
def archive_restore(context: typer.Context, folder: Folder) -> None:
    """Restore the log from an archive into an empty, migrated database; can be stopped and run again."""
    settings: Settings = context.obj

    async def work() -> int:
        async with open_pool(settings.need_postgres(), max_connections=1) as pool:
            with _progress() as show:
                return await restore_log(pool, folder, on_progress=lambda done: show(done, 0))

    typer.echo(f"restored {run(work()):,} events")


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Show how far it is, in events; of how many, if that is known (not 0)."""
    with Progress(console=messages, transient=True, disable=not messages.is_terminal) as progress:
        task = progress.add_task("events", total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of or None)
