"""What differs between two schemas, field by field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from .compatibility import Level, conflicts
from .shape import Member, Shape, shape_of

__all__ = ["Difference", "differences", "verdicts"]


class Difference(NamedTuple):
    """One place: `sign` is + (added), - (removed) or ~ (changed)."""

    sign: str
    path: str
    said: str

    def __str__(self) -> str:
        return f"{self.sign} {self.path or '(the record)'}: {self.said}"


def differences(old: Any, new: Any) -> list[Difference]:
    """Return what differs between two schemas (parsed JSON), in the order of the new one's fields; [] if both mean the same.

    Documentation and the order of fields are no differences.

    Raises:
        SchemaError: one of them is no valid Avro.
    """
    return list(dict.fromkeys(_compare(shape_of(old), shape_of(new), "", set())))


def verdicts(old: Any, new: Any) -> dict[Level, list[str]]:
    """Return what BACKWARD, FORWARD and FULL have against `new` as the version behind `old`; [] where a level holds."""
    before, after = shape_of(old), shape_of(new)
    backward = list(map(str, conflicts(after, before, forward=False)))
    forward = list(map(str, conflicts(before, after, forward=True)))
    return {Level.BACKWARD: backward, Level.FORWARD: forward, Level.FULL: list(dict.fromkeys(backward + forward))}


def _compare(old: Shape, new: Shape, path: str, seen: set[tuple[int, int]]) -> Iterator[Difference]:
    if (id(old), id(new)) in seen:
        return
    seen.add((id(old), id(new)))
    if old.name != new.name and old.kind == new.kind and old.name and new.name:
        yield Difference("~", path, f"{old.kind} {old.name} → {new.name}")
    if old.kind == new.kind == "union" and str(old) != str(new):
        yield Difference("~", path, f"{old} → {new}")
    elif old.kind != new.kind or (not old.name and old.inner is None and str(old) != str(new)):
        yield Difference("~", path, f"{old} → {new}")
        return
    yield from _named(old, new, path)
    if old.inner is not None and new.inner is not None:
        yield from _compare(old.inner, new.inner, path + ("[]" if new.kind == "array" else "{}"), seen)
    for branch in new.branches:
        partner = next((each for each in old.branches if each.kind == branch.kind and each.name == branch.name), None)
        if partner is not None:
            yield from _compare(partner, branch, path, seen)
    yield from _members(old, new, path, seen)


def _named(old: Shape, new: Shape, path: str) -> Iterator[Difference]:
    if old.size != new.size:
        yield Difference("~", path, f"{old.size} → {new.size} bytes")
    if old.kind == "fixed" and (old.logical, old.precision, old.scale) != (new.logical, new.precision, new.scale):
        yield Difference("~", path, f"{_logical(old)} → {_logical(new)}")
    if old.symbols != new.symbols:
        if gone := [symbol for symbol in old.symbols if symbol not in new.symbols]:
            yield Difference("-", path, f"symbol {', '.join(gone)}")
        if added := [symbol for symbol in new.symbols if symbol not in old.symbols]:
            yield Difference("+", path, f"symbol {', '.join(added)}")
        if set(old.symbols) == set(new.symbols):
            yield Difference("~", path, f"symbols in another order: {', '.join(new.symbols)}")
    if old.default != new.default:
        yield Difference("~", path, f"the enum's default: {old.default or 'none'} → {new.default or 'none'}")


def _members(old: Shape, new: Shape, path: str, seen: set[tuple[int, int]]) -> Iterator[Difference]:
    written = {member.name: member for member in old.members}
    for member in new.members:
        name = next((each for each in (member.name, *member.aliases) if each in written), None)
        where = f"{path}.{member.name}" if path else member.name
        if name is None:
            yield Difference("+", where, f"{member.shape}{_default(member)}")
            continue
        before = written.pop(name)
        if name != member.name:
            yield Difference("~", where, f"renamed from {name}")
        yield from _compare(before.shape, member.shape, where, seen)
        if _default(before) != _default(member):
            yield Difference("~", where, f"{_default(before, 'no default')[2:]} → {_default(member, 'no default')[2:]}")
    for member in written.values():
        yield Difference("-", f"{path}.{member.name}" if path else member.name, f"{member.shape}{_default(member)}")


def _default(member: Member, none: str = "") -> str:
    return f", default {json.dumps(member.default, sort_keys=True)}" if member.has_default else f"  {none}" * bool(none)


def _logical(shape: Shape) -> str:
    return f"decimal({shape.precision}, {shape.scale})" if shape.logical == "decimal" else shape.logical or "plain bytes"
