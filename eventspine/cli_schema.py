"""`eventspine schema …`: event types, their Avro schemas, and the check of what a change would break."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from .check_classes import check_snapshots
from .check_registry import ask_registry, strategies_of
from .check_report import Mistake, Report
from .check_store import Held, load_held, load_snapshots
from .cli_asyncapi import asyncapi
from .cli_registry import open_registry
from .connect import open_pool
from .schema_check import check_program
from .schema_files import file_name, generate_module, newest_in, next_schema, write_schemas
from .schema_module import SchemaModule, load_schema_module
from .schemas import EventType, SchemaError, SettingsError
from .schemas.compatibility import Level
from .schemas.diff import differences, verdicts
from .schemas.envelope import envelope_schema, pin_envelopes
from .schemas.handlers import handlers_of
from .schemas.pins import load_pinned_types, register_event_types
from .schemas.postgres import translated
from .settings import Settings
from .store.postgres import migrate
from .terminal import AsJson, run

__all__ = ["schema_app"]

schema_app = typer.Typer(no_args_is_help=True, help="Event types, their Avro schemas, and what a change would break.")
schema_app.command("asyncapi")(asyncapi)

Files = Annotated[list[Path], typer.Argument(help="OrderPlaced.avsc, OrderPlaced.v2.avsc, …", exists=True, dir_okay=False)]
MaybeFiles = Annotated[
    list[Path] | None, typer.Argument(help="OrderPlaced.avsc, OrderPlaced.v2.avsc, …", exists=True, dir_okay=False)
]
Modules = Annotated[
    list[str] | None, typer.Option("--schemas", help="Module of event types and upcasters: shop.schemas; default: the setting")
]
Folder = Annotated[Path, typer.Option(help="Folder of the .avsc files.")]
LevelOption = Annotated[Level, typer.Option(help="What a new version owes to the earlier ones.", case_sensitive=False)]


@schema_app.command("register")
def schema_register(
    context: typer.Context, files: MaybeFiles = None, schemas: Modules = None, level: LevelOption = Level.FULL_TRANSITIVE
) -> None:
    """Register event types: of Avro schema files, or else those of the modules. Doing it again changes nothing.

    A new version must be compatible with the earlier ones at --level, or be reached from them by upcasters in --schemas.
    """
    settings: Settings = context.obj
    module = load_schema_module(schemas or settings.schema_modules())
    event_types = [EventType.from_avsc(file) for file in files] if files else module.event_types
    upcasters = module.upcasters
    if not event_types:
        raise SettingsError("nothing to register: name .avsc files, or by --schemas a module that declares event types")

    async def work() -> None:
        async with open_pool(settings.need_postgres(), max_connections=1) as pool, open_registry(settings) as registry:
            async with translated(), pool.acquire() as connection:
                await migrate(connection, only_if_empty=True)
            pinned = await register_event_types(pool, event_types, upcasters, compatibility=level, registry=registry)
            if settings.value_format == "envelope":  # so that the relay needs no registry for them
                await pin_envelopes(pool, [pin.schema_id for pin in pinned], registry=registry)

    run(work())
    for event_type in event_types:
        typer.echo(f"{event_type.name} version {event_type.schema_version} is registered")


@schema_app.command("list")
def schema_list(context: typer.Context, as_json: AsJson = False) -> None:
    """List the registered event types."""
    settings: Settings = context.obj

    async def work() -> list[tuple[int, EventType]]:
        async with open_pool(settings.need_postgres(), max_connections=1) as pool:
            return [(pin.schema_id, pin.event_type) for pin in await load_pinned_types(pool)]

    for schema_id, event_type in run(work()):
        if as_json:
            typer.echo(json.dumps({"schema_id": schema_id, "event_type": event_type.name, "version": event_type.schema_version}))
        else:
            typer.echo(f"{schema_id:>5}  {event_type.name} version {event_type.schema_version}")


@schema_app.command("check")
def schema_check(
    context: typer.Context,
    files: MaybeFiles = None,
    schemas: Modules = None,
    level: LevelOption = Level.FULL_TRANSITIVE,
    registry: Annotated[str | None, typer.Option(help="URL of a schema registry to ask as well.")] = None,
    strategy: Annotated[str | None, typer.Option(help="How subjects are called there; `all` for every strategy.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what would go wrong if these event types, upcasters and classes went live, each time with the smallest example.

    Takes every schema version that events of the store were written in (without a store: every version that is given), makes
    examples of it, runs the upcasters to today's version, and gives the result to today's schema, to the classes and to the
    handlers of aggregates. New versions must pass the gate. Writes nothing; exits with 1 if there is a mistake.
    """
    settings: Settings = context.obj
    strategies = strategies_of(strategy or settings.subject_strategy)
    report = Report()
    offered = _read_files(report, files or [])
    module = _load(report, schemas or settings.schema_modules())
    if not (offered or any(module) or report.mistakes or settings.postgres_dsn):
        raise SettingsError("there is nothing to check: give files or --schemas, or set postgres_dsn")
    offered = _join(offered, module.event_types)
    held = run(_look(settings, module, report)) if settings.postgres_dsn else None
    if held is None:
        report.notes.append("no store was asked: postgres_dsn is not set")
    check_program(report, offered, module.upcasters, module.aggregates, held, level)
    if not module.upcasters and any(each.kind == "upcaster" for each in report.mistakes):
        report.notes.append("no upcasters were given: --schemas names the modules that hold them")
    if registry:
        _ask(report, registry, settings, strategies, offered, module, held)
    _finish(report, as_json)


@schema_app.command("diff")
def schema_diff(
    context: typer.Context,
    before: Annotated[str, typer.Argument(metavar="A", help="A file, or TYPE:VERSION as registered: OrderPlaced:1")],
    after: Annotated[str, typer.Argument(metavar="B", help="The newer one, in the same form.")],
    as_json: AsJson = False,
) -> None:
    """Show field by field what differs between two schemas, and which levels of compatibility hold."""
    old, new = _find_schemas(context.obj, [before, after])
    found, answers = differences(old.schema, new.schema), verdicts(old.schema, new.schema)
    if as_json:
        levels = {str(level): said for level, said in answers.items()}
        typer.echo(json.dumps({"differences": [each._asdict() for each in found], "levels": levels}))
        return
    typer.echo(f"{old.name} version {old.schema_version} → {new.name} version {new.schema_version}")
    for each in found:
        typer.echo(f"  {each}")
    if not found:
        typer.echo("  no difference")
    for level, said in answers.items():
        typer.echo(f"{level:<9} {'no' if said else 'yes'}")
        if level is not Level.FULL:
            for line in said:
                typer.echo(f"  {line}")


@schema_app.command("new")
def schema_new(
    name: Annotated[str, typer.Argument(help="Like OrderPlaced.")],
    fields: Annotated[
        list[str] | None, typer.Argument(help="total:long  note:string?  lines:string[]  price:decimal(12,2)")
    ] = None,
    folder: Folder = Path(),
) -> None:
    """Write the file of a new event type, or of the next version of one that has files in the folder.

    The next version is a copy of the newest with the fields added; they can be null, and are null in events written before.
    """
    newest = newest_in(folder, name)
    version = newest.schema_version + 1 if newest else 1
    event_type = EventType.from_schema(next_schema(name, fields or [], newest), schema_version=version)
    write_schemas(folder, [event_type])
    typer.echo(folder / file_name(name, version))


@schema_app.command("export")
def schema_export(
    context: typer.Context, to: Annotated[Path, typer.Option(help="Folder that the files go to.")] = Path("schemas")
) -> None:
    """Write every registered version of every event type as a file."""
    settings: Settings = context.obj

    async def work() -> list[EventType]:
        async with open_pool(settings.need_postgres(), max_connections=1) as pool:
            return [pin.event_type for pin in await load_pinned_types(pool)]

    registered = run(work())
    written = write_schemas(to, registered)
    for file in written:
        typer.echo(file)
    typer.echo(f"{len(registered):,} schemas are in {to}, {len(written):,} of them new")


@schema_app.command("generate")
def schema_generate(
    files: Files,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The Python module that is written; else the screen.")
    ] = None,
    pydantic: Annotated[bool, typer.Option("--pydantic", help="Pydantic models instead of dataclasses.")] = False,
) -> None:
    """Write classes for event types: dataclasses, or pydantic models. `EventType.from_dataclass` gives the same schemas back.

    Of several versions of a type, the newest becomes the class.
    """
    event_types = _newest([EventType.from_avsc(file) for file in files])
    module = generate_module(event_types, pydantic=pydantic)
    if output is None:
        typer.echo(module, nl=False)
        return
    output.write_text(module, encoding="utf-8")
    typer.echo(f"{output}: {', '.join(each.name for each in event_types)}")


def _read_files(report: Report, files: Sequence[Path]) -> list[EventType]:
    event_types = []
    for file in files:
        try:
            event_types.append(EventType.from_avsc(file))
        except SchemaError as error:
            report.mistakes.append(_invalid(file.name.partition(".")[0], error))
    return event_types


def _load(report: Report, names: Sequence[str]) -> SchemaModule:
    try:
        return load_schema_module(names)
    except SchemaError as error:  # an event type or an upcaster that can't be made
        report.mistakes.append(_invalid("", error))
        return SchemaModule([], [], [])


def _invalid(event_type: str, error: SchemaError) -> Mistake:
    what, _, advice = str(error).rpartition("; ")
    return Mistake("schema", event_type, what or advice, advice if what else "correct the schema")


def _join(files: list[EventType], module: list[EventType]) -> list[EventType]:
    """Files and modules together; of what both give, the one that knows its class."""
    joined = [next((each for each in module if each == file), file) for file in files]
    return joined + [each for each in module if each not in joined]


async def _look(settings: Settings, module: SchemaModule, report: Report) -> Held:
    async with open_pool(settings.need_postgres(), max_connections=1) as pool:
        held = await load_held(pool)
        check_snapshots(report, await load_snapshots(pool, module.aggregates))
    if held.unregistered:
        report.notes.append(f"in the log without a schema of their own: {', '.join(held.unregistered)}")
    return held


def _ask(
    report: Report,
    url: str,
    settings: Settings,
    strategies: Sequence[str],
    offered: Sequence[EventType],
    module: SchemaModule,
    held: Held | None,
) -> None:
    categories = dict(held.categories) if held else {}
    for aggregate in module.aggregates:
        for name in handlers_of(aggregate, SettingsError):
            categories[name] = categories.get(name, set()) | {aggregate.stream_type}
    published = list(_newest(offered))
    if settings.value_format == "envelope":
        published = [replace(each, definition=json.dumps(envelope_schema(each.definition)), model=None) for each in published]
    ask_registry(report, url, published, categories, strategies, settings.topic_prefix)


def _newest(event_types: Sequence[EventType]) -> list[EventType]:
    highest: dict[str, EventType] = {}
    for each in event_types:
        if each.name not in highest or highest[each.name].schema_version < each.schema_version:
            highest[each.name] = each
    return list(highest.values())


def _find_schemas(settings: Settings, places: Sequence[str]) -> list[EventType]:
    async def load() -> dict[str, EventType]:
        async with open_pool(settings.need_postgres(), max_connections=1) as pool:
            pinned = await load_pinned_types(pool)
        return {f"{pin.event_type.name}:{pin.event_type.schema_version}": pin.event_type for pin in pinned}

    named = [place for place in places if not place.endswith(".avsc")]
    registered = run(load()) if named else {}
    for place in named:
        if place not in registered:
            raise SettingsError(f"{place!r} is neither a .avsc file nor registered: write a registered one as OrderPlaced:1")
    for place in set(places) - set(named):
        if not Path(place).is_file():
            raise SettingsError(f"there is no file {place!r}")
    return [registered[place] if place in registered else EventType.from_avsc(Path(place)) for place in places]


def _finish(report: Report, as_json: bool) -> None:
    """Print the report; exit with 1 if it holds a mistake."""
    if as_json:
        facts = {
            "mistakes": [each.as_dict() for each in report.mistakes],
            "notes": report.notes,
            "checked": report.checked,
        }
        typer.echo(msgspec.json.encode(facts))
    else:
        for mistake in report.mistakes:
            first, *others = mistake.lines()
            typer.echo(f"✗ {first}")
            for line in others:
                typer.echo(line)
            typer.echo()
        for note in report.notes:
            typer.echo(f"- {note}")
        typer.echo(f"{'✗' if report.mistakes else '✓'} {report.summary()}; {_number(len(report.mistakes))}")
    if report.mistakes:
        raise typer.Exit(1)


def _number(mistakes: int) -> str:
    return "1 mistake" if mistakes == 1 else f"{mistakes or 'no'} mistakes"
