"""What a program declares in its modules: event types, upcasters, aggregates."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .schemas import EventspineError, EventType, SchemaError, SettingsError, Upcaster
from .store import Aggregate

__all__ = ["SchemaModule", "import_module", "load_schema_module"]


class SchemaModule(NamedTuple):
    """What was found, each once, in the order of the modules."""

    event_types: list[EventType]
    upcasters: list[Upcaster]
    aggregates: list[type[Aggregate]]


def load_schema_module(names: Sequence[str]) -> SchemaModule:
    """Import modules like `shop.schemas` from the current folder (or from what is installed), and collect what they hold.

    That is every EventType, Upcaster and subclass of Aggregate that is a module's attribute, or stands in a list, tuple, set or
    dict that is one. What a module imports from another counts as its own. No names: nothing is found.

    Raises:
        SettingsError: a module can't be imported, or holds nothing of that.
        SchemaError: two event types have the same name and version and not the same schema.
    """
    found = SchemaModule([], [], [])
    for name in names:
        taken = [_take(found, value) for value in _values(vars(import_module(name)).values(), set())]
        if not any(taken):
            raise SettingsError(f"the module {name!r} holds no EventType, no upcaster and no Aggregate: name the one that does")
    _check_unique(found.event_types)
    return found


def import_module(name: str) -> Any:
    """Import a module from the current folder, or from what is installed.

    Raises:
        SettingsError: it can't be imported.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise SettingsError(f"{name!r} is no name of a module: write it as in an import, like shop.schemas")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except EventspineError:
        raise
    except Exception as error:  # whatever the module's own code raises
        raise SettingsError(
            f"the module {name!r} can't be imported: {type(error).__name__}: {error}; run from the folder that holds it"
        ) from error


def _values(values: Iterable[Any], seen: set[int]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple, set, frozenset)) or type(value) is dict:
            if id(value) not in seen:
                seen.add(id(value))
                yield from _values(list(value.values() if isinstance(value, dict) else value), seen)
        else:
            yield value


def _take(found: SchemaModule, value: Any) -> bool:
    """Add a value to what was found; False if it is nothing of ours."""
    if isinstance(value, EventType):
        known = [each for each in found.event_types if each == value]
        if not known:
            found.event_types.append(value)
        elif known[0].model is None and value.model is not None:
            found.event_types[found.event_types.index(known[0])] = value
    elif isinstance(value, Upcaster):
        if not any(each is value for each in found.upcasters):
            found.upcasters.append(value)
    elif isinstance(value, type) and issubclass(value, Aggregate) and value is not Aggregate:
        if value not in found.aggregates:
            found.aggregates.append(value)
    else:
        return False
    return True


def _check_unique(event_types: Iterable[EventType]) -> None:
    known: dict[tuple[str, int], EventType] = {}
    for each in event_types:
        other = known.setdefault((each.name, each.schema_version), each)
        if other != each:
            raise SchemaError(
                f"{each.name} version {each.schema_version} is declared with two schemas; a change is a new version: "
                f"EventType.…(…, schema_version={each.schema_version + 1})"
            )
