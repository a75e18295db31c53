"""Projections by name, as the command line is told them."""

from __future__ import annotations

from .consumers import Projection
from .schema_module import import_module
from .schemas import SettingsError

__all__ = ["load_projection"]


def load_projection(path: str) -> Projection:
    """Import `module:Class` and make the projection.

    Raises:
        SettingsError: there is no such module or class, or it is no projection.
    """
    module_name, _, class_name = path.partition(":")
    if not module_name or not class_name:
        raise SettingsError(f"{path!r}: name a projection as MODULE:CLASS, like shop.projections:OrderSummary")
    found = getattr(import_module(module_name), class_name, None)
    if found is None:
        raise SettingsError(f"{path!r}: the module {module_name!r} has no {class_name!r}")
    if not (isinstance(found, type) and issubclass(found, Projection)):
        raise SettingsError(f"{path!r} is no subclass of eventspine.Projection")
    return found()
