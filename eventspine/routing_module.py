"""The routing that the settings name, and the router that they describe."""

from __future__ import annotations

from .relay import Routing
from .relay.router import Router
from .relay.source import Pins
from .schema_module import import_module, load_schema_module
from .schemas import SettingsError
from .settings import Settings

__all__ = ["load_routing", "make_router"]


def load_routing(path: str) -> Routing:
    """Import `module:name`, from the current folder or from what is installed.

    Raises:
        SettingsError: there is no such module or name, or it is no routing.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise SettingsError(f"relay_routing is {path!r}; name a routing as MODULE:NAME, like shop.relay:routing")
    module = import_module(module_name)
    if not hasattr(module, name):
        raise SettingsError(f"relay_routing is {path!r}, and the module {module_name!r} has no {name!r}")
    found = getattr(module, name)
    if not isinstance(found, Routing):
        raise SettingsError(f"relay_routing is {path!r}, which is {type(found).__name__}; it must be an eventspine.Routing")
    return found


async def make_router(settings: Settings, log: Pins) -> Router:
    """Make the router of a log that the settings describe, with its public event types registered.

    Raises:
        SettingsError: the routing can't be loaded, or an option is unknown.
        SchemaError: a public type contradicts a registered one.
        Unavailable: the log is away, or with a new public type the registry.
    """
    declared = load_schema_module(settings.schema_modules()) if settings.relay_routing else None
    router = Router(
        log,
        prefix=settings.topic_prefix,
        source=settings.source,
        value_format=settings.value_format,
        subject_strategy=settings.subject_strategy,
        routing=load_routing(settings.relay_routing) if settings.relay_routing else None,
        event_types=declared.event_types if declared else (),
        upcasters=declared.upcasters if declared else (),
    )
    await router.start()
    return router
