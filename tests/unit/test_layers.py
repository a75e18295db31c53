"""Data flows one way: schemas <- store <- relay, schemas <- consumers; only the facade knows all."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("schemas", "store", "relay", "consumers", "eventspine", "eventspine.local")
MAY_IMPORT = {
    "schemas": {"schemas"},
    "store": {"schemas", "store"},
    "relay": {"schemas", "store", "relay"},
    "consumers": {"schemas", "store", "consumers"},
    "eventspine": set(LAYERS),
    "eventspine.local": {"schemas", "eventspine.local"},
}


def sources() -> Iterator[tuple[str, str, Path]]:
    """Yield (layer, dotted module name as users import it, file) for each file of the package."""
    for folder in ("schemas", "store", "relay", "consumers", "eventspine"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            if folder != "eventspine":
                parts = ("eventspine", *parts)
            name = ".".join(parts).removesuffix(".__init__")
            yield layer_of(name), name, file


def layer_of(module: str) -> str:
    second = module.split(".")[1] if "." in module else ""
    return (
        second
        if second in ("schemas", "store", "relay", "consumers")
        else ("eventspine.local" if second == "local" else "eventspine")
    )


def imports(name: str, file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute module) for every import of our own in a file, also those inside functions."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            # `from . import x` and `from eventspine import x`: x may be a module itself
            targets = [f"{module}.{alias.name}" for alias in node.names] if module == "eventspine" else [module]
        else:
            continue
        for target in targets:
            if target.split(".")[0] == "eventspine":
                yield node.lineno, target


def test_there_is_something_to_check() -> None:
    layers = {layer for layer, _, _ in sources()}
    assert {"schemas", "store", "relay", "consumers", "eventspine"} <= layers
    assert ("store", "eventspine.store.postgres.batch") in {(layer, name) for layer, name, _ in sources()}
    assert any(
        target == "eventspine.schemas"
        for _, name, file in sources()
        if name.endswith("batch")
        for _, target in imports(name, file)
    )


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_what_lies_below_it(layer: str) -> None:
    upward = [
        f"{file.relative_to(ROOT)}:{line} imports {target}"
        for own, name, file in sources()
        if own == layer
        for line, target in imports(name, file)
        if layer_of(target) not in MAY_IMPORT[layer]
    ]
    assert not upward


@pytest.mark.parametrize("layer", ["schemas", "store", "relay", "consumers"])
def test_siblings_import_each_other_relatively(layer: str) -> None:
    absolute = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for own, _, file in sources()
        if own == layer
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "eventspine")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "eventspine" for alias in node.names))
    ]
    assert not absolute
