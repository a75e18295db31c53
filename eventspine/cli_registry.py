"""`eventspine registry`: the schema registry over HTTP, and registries of others by URL."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import asyncpg
import typer

from .connect import open_pool
from .schemas import SettingsError
from .schemas.registry_client import RegistryClient
from .schemas.registry_sync import Difference, Pushed, keep_registry, push_to_registry, verify_registry
from .schemas.registry_users import Users, hash_password
from .settings import Settings
from .terminal import AsJson, messages, run

__all__ = ["keeping_registry", "open_registry", "registry_app"]

registry_app = typer.Typer(no_args_is_help=True, help="The schema registry over HTTP, and registries of others.")

RegistryUrl = Annotated[str | None, typer.Option(help="URL of a registry; default: the setting registry_url.")]


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


@registry_app.command("verify")
def registry_verify(context: typer.Context, registry_url: RegistryUrl = None, as_json: AsJson = False) -> None:
    """Compare the ids and subjects in Postgres with a registry, and name what differs. Exits with 1 if anything does."""
    settings = _settings(context, registry_url)

    async def work() -> list[Difference]:
        async with open_pool(settings.need_postgres(), max_connections=1) as pool, open_registry(settings) as registry:
            assert registry is not None
            return await verify_registry(pool, registry)

    _say(run(work()), as_json)


@registry_app.command("push")
def registry_push(context: typer.Context, registry_url: RegistryUrl = None, as_json: AsJson = False) -> None:
    """Bring the schemas that a registry lacks there, under the ids and versions that Postgres has, then compare.

    For an empty or rebuilt registry. It has to know the mode IMPORT; a subject is in it only while it is written. Exits with 1 if
    anything differs at the end.
    """
    settings = _settings(context, registry_url)

    async def work() -> Pushed:
        async with open_pool(settings.need_postgres(), max_connections=1) as pool, open_registry(settings) as registry:
            assert registry is not None
            return await push_to_registry(pool, registry)

    pushed = run(work())
    for subject, schema_id in pushed.imported:
        typer.echo(
            json.dumps({"imported": subject, "schema_id": schema_id}) if as_json else f"imported {schema_id:>5}  {subject}"
        )
    _say(pushed.left, as_json)


@asynccontextmanager
async def open_registry(settings: Settings) -> AsyncIterator[RegistryClient | None]:
    """Open the registry that the settings name; None if they name none."""
    if not settings.registry_url:
        yield None
        return
    async with RegistryClient(
        settings.registry_url, user=settings.registry_user, password=settings.registry_password
    ) as registry:
        yield registry


@asynccontextmanager
async def keeping_registry(pool: asyncpg.Pool, registry: RegistryClient | None) -> AsyncIterator[None]:
    """Keep a registry in step with Postgres while the block runs; see `keep_registry`."""
    if registry is None:
        yield
        return
    keeper = asyncio.create_task(keep_registry(pool, registry))
    try:
        yield
    finally:
        keeper.cancel()
        with suppress(asyncio.CancelledError):
            await keeper


def _settings(context: typer.Context, registry_url: str | None) -> Settings:
    settings: Settings = context.obj
    settings = replace(settings, registry_url=registry_url or settings.registry_url)
    if not settings.registry_url:
        raise SettingsError("no registry is named: give --registry-url, or set registry_url or EVENTSPINE_REGISTRY_URL")
    return settings


def _say(differences: Sequence[Difference], as_json: bool) -> None:
    for each in differences:
        typer.echo(json.dumps(each._asdict()) if as_json else f"✗ {each}")
    if not as_json:
        typer.echo(f"✗ {len(differences):,} differences" if differences else "✓ the registry agrees with Postgres")
    if differences:
        raise typer.Exit(1)
