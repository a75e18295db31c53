"""Projections by name, as the command line is told them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from .consumers import Projection
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
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"{path!r} can't be imported: {error}; run from the folder that holds the module") from error
    if not (isinstance(found, type) and issubclass(found, Projection)):
        raise SettingsError(f"{path!r} is no subclass of eventspine.Projection")
    return found()
