"""`eventspine registry`: the schema registry over HTTP."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .connect import open_pool
from .schemas import SettingsError
from .schemas.registry_users import Users, hash_password
from .settings import Settings
from .terminal import messages, run

__all__ = ["registry_app"]

registry_app = typer.Typer(no_args_is_help=True, help="The schema registry over HTTP.")


@registry_app.command("serve")
def registry_serve(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8081,
    users: Annotated[Path | None, typer.Option(help="Who may use it: lines of `registry password`. Default: everybody.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM), to serve https.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key (PEM).")] = None,
) -> None:
    """Serve the schemas in Postgres to clients of Confluent's schema registry, and take new ones, until stopped."""
    try:
        from .schemas.registry import serve_registry
    except ImportError as error:
        raise SettingsError('the registry needs more packages: pip install "eventspine[registry]"') from error
    settings: Settings = context.obj

    def say(url: str) -> None:
        messages.print(f"registry: {url}", highlight=False)

    async def work() -> None:
        known = Users.from_file(users) if users else None
        async with open_pool(settings.need_postgres(), max_connections=5) as pool:
            await serve_registry(pool, host, port, users=known, tls_cert=tls_cert, tls_key=tls_key, on_start=say)

    run(work())


@registry_app.command("password")
def registry_password(
    name: Annotated[str, typer.Argument(help="Name of the user.")],
    read_only: Annotated[bool, typer.Option("--read-only", help="May read and test schemas, and change nothing.")] = False,
) -> None:
    """Ask for a password (or read it from a pipe), and print the user's line for the file of `registry serve --users`."""
    if sys.stdin.isatty():
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    typer.echo(hash_password(name, password, read_only=read_only))
