"""`eventspine schema check`: would anything go wrong if these event types, upcasters and classes went live on this store?

Nothing is written, and no event's data is read: examples are made from the schemas that wrote what the store holds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from .check_classes import Example, check_aggregates, check_model
from .check_report import Mistake, Report
from .check_store import Held
from .schemas import Codec, EventspineError, EventType, InvalidEvent, PinnedType, SchemaError, Upcaster
from .schemas.codec import check_new_definition
from .schemas.compatibility import Level
from .schemas.examples import examples_of
from .schemas.gate import Breach, as_json, breaches
from .schemas.handlers import handlers_of
from .schemas.upcasting import Step, Upcasting
from .store import Aggregate

__all__ = ["check_program"]

Versions = dict[int, EventType]


def check_program(
    report: Report,
    offered: Sequence[EventType],
    upcasters: Sequence[Upcaster],
    aggregates: Sequence[type[Aggregate]],
    held: Held | None,
    level: Level,
) -> None:
    """Check what a program declares against what a store holds; without a store, against itself.

    Each offered version that is not registered passes the gate; every version that events were written in is upcast, by examples,
    to today's; today's data goes through the classes and handlers.
    """
    known: dict[str, Versions] = {}
    for each in held.registered if held else ():
        known.setdefault(each.name, {})[each.schema_version] = each
    registered = {name: set(versions) for name, versions in known.items()}
    for each in offered:
        _offer(report, known.setdefault(each.name, {}), each)
    _check_names(report, known, upcasters)
    examples: dict[str, list[Example]] = {}
    for name, versions in sorted(known.items()):
        declared = [each.schema_version for each in offered if each.name == name]
        if held and not declared and name not in held.versions:
            continue  # registered, but no event has it and this program does not declare it
        own = [each for each in upcasters if each.event_type == name]
        report.count("event types")
        refused = _check_gate(report, versions, registered.get(name, set()), own, level)
        target = max(declared or versions)
        written = (held.versions.get(name, set()) & versions.keys()) | {target} if held else set(versions)
        path = _upcasting(report, versions, own, target, refused)
        if path is not None:
            examples[name] = _Conversion(report, versions, path, target).run(written, own)
            check_model(report, versions[target], examples[name])
    for aggregate in aggregates:
        for name in handlers_of(aggregate, EventspineError):
            if name not in known:
                report.notes.append(f"{aggregate.__name__} handles {name}: there is no such event type here")
    check_aggregates(report, aggregates, examples)


def _offer(report: Report, versions: Versions, offered: EventType) -> None:
    known = versions.get(offered.schema_version)
    if known is None:
        versions[offered.schema_version] = offered
        return
    try:
        check_new_definition(known, offered)
    except SchemaError as error:
        what, _, advice = str(error).partition("; ")
        report.mistakes.append(Mistake("schema", offered.name, what, advice))
    else:
        versions[offered.schema_version] = offered  # the one that knows its class


def _check_names(report: Report, known: dict[str, Versions], upcasters: Iterable[Upcaster]) -> None:
    for each in upcasters:
        if each.event_type not in known:
            names = ", ".join(sorted(known)) or "none"
            report.mistakes.append(
                Mistake("upcaster", each.event_type, f"{each}: there is no event type {each.event_type!r}", f"known are {names}")
            )


def _check_gate(
    report: Report, versions: Versions, registered: set[int], upcasters: Sequence[Upcaster], level: Level
) -> set[int]:
    """Check each version that is not registered yet; return the earlier versions that one does not go with."""
    refused = set()
    for version in sorted(versions.keys() - registered):
        report.count("new versions")
        earlier = [versions[each] for each in sorted(versions) if each < version]
        for breach in breaches(versions[version], earlier, level, upcasters):
            refused.add(breach.earlier)
            report.mistakes.append(_refused(breach))
    return refused


def _refused(breach: Breach) -> Mistake:
    example = breach.counterexample
    return Mistake(
        "gate",
        breach.event_type,
        f"{breach.event_type} version {breach.version} does not go with version {breach.earlier} ({breach.level})",
        breach.advice,
        example.data if example else None,
        f"written by version {example.written_by}, {example.outcome}" if example else "",
        tuple(map(str, breach.found)),
    )


def _upcasting(
    report: Report, versions: Versions, upcasters: Sequence[Upcaster], target: int, refused: set[int]
) -> Upcasting | None:
    """Return the paths to today's version; None if there are none, which is reported unless the gate has done so."""
    try:
        return Upcasting(versions.values(), upcasters, {versions[target].name: target})
    except SchemaError as error:
        what, _, advice = str(error).rpartition("; ")
        if not any(f"version {version} can't be read" in str(error) for version in refused):
            report.mistakes.append(Mistake("upcaster", versions[target].name, what or advice, advice if what else "see above"))
        return None


class _Conversion:
    """Brings examples of one event type to today's version, step by step."""

    def __init__(self, report: Report, versions: Versions, upcasting: Upcasting, target: int) -> None:
        self._report = report
        self._versions = versions
        self._upcasting = upcasting
        self._target = target
        self._name = versions[target].name
        self._codec = Codec()
        self._codec.add(PinnedType(number, each) for number, each in versions.items())

    def run(self, written: Iterable[int], upcasters: Sequence[Upcaster]) -> list[Example]:
        """Return examples of what readers get, today's own first."""
        self._report.count("upcasters", len(upcasters))
        found = []
        for version in sorted(written, reverse=True):
            self._report.count("versions")
            found += self._examples(version)
        for each in upcasters:
            if each.down is not None and {each.from_version, each.to_version} <= self._versions.keys():
                self._check_way_back(each, upcasters)
        return found

    def _examples(self, version: int) -> list[Example]:
        try:
            path = self._upcasting.path(self._name, version)
        except SchemaError as error:  # a newer version than this program's
            what, _, advice = str(error).rpartition("; ")
            self._report.mistakes.append(Mistake("upcaster", self._name, what, advice))
            return []
        found = []
        extreme = ""
        for data in self._written(version):
            converted = copy.deepcopy(data)
            fault = None
            for step in path:
                converted, fault = self._apply(step, converted)
                if fault:
                    break
            if fault and not _is_extreme(data):
                self._report.mistakes.append(self._mistake(fault, version, data))
                return []
            if fault:
                extreme = extreme or f"only at the bounds of numbers: {fault}; {as_json(data)}, written by version {version}"
            else:
                found.append(Example(version, data, converted))
        if extreme:
            self._report.notes.append(extreme)
        self._report.count("examples", len(found))
        return found

    def _check_way_back(self, upcaster: Upcaster, upcasters: Sequence[Upcaster]) -> None:
        try:
            back = Upcasting(self._versions.values(), upcasters, {self._name: upcaster.from_version})
            (step,) = back.path(self._name, upcaster.to_version)
        except SchemaError:  # another version has no way back: nobody asked for one
            return
        for data in self._written(upcaster.to_version):
            if _refuses(upcaster, copy.deepcopy(data)):
                continue
            _, fault = self._apply(step, copy.deepcopy(data))
            if fault and not _is_extreme(data):
                self._report.mistakes.append(self._mistake(fault, upcaster.to_version, data))
                return

    def _written(self, version: int) -> Iterable[dict[str, Any]]:
        """Data of a version as readers decode it; what the store would refuse is left out."""
        for data in examples_of(self._versions[version].schema):
            try:
                yield self._codec.encode(self._name, version, data).data
            except InvalidEvent:
                continue

    def _apply(self, step: Step, data: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """Return the data after a step, and what is wrong with it, "" if nothing. A step whose version is known must fit it."""
        again = copy.deepcopy(data)
        try:
            converted = step.apply(data)
            same = step.apply(again) == converted
        except Exception as error:  # it tells the step and, with its cause, what the step raised
            cause = error.__cause__
            return {}, f"{step.name} raises {type(cause).__name__}: {cause}" if cause else str(error)
        if not same:
            return {}, f"{step.name} returns something else when it runs again; it runs for each reading, so it must be pure"
        if step.to_version not in self._versions:
            return converted, ""
        try:
            decoded = self._codec.encode(self._name, step.to_version, converted).data
        except InvalidEvent as error:
            return {}, f"{step.name} returns what does not fit version {step.to_version}: {error.reason}"
        left_out = _left_out(decoded, converted, "")
        if left_out:
            said = "what is appended gets its default there, what is read does not"
            return {}, f"{step.name} leaves out {left_out!r}, which version {step.to_version} has: {said}"
        return converted, ""

    def _mistake(self, fault: str, version: int, data: dict[str, Any]) -> Mistake:
        advice = "let the upcaster take every value that its version can hold, and return data of the version that it leads to"
        return Mistake("upcaster", self._name, fault, advice, data, f"written by version {version}")


def _refuses(upcaster: Upcaster, data: dict[str, Any]) -> bool:
    """Whether a way back says by a ValueError that the older version has no words for this data: that is its right."""
    assert upcaster.down is not None
    try:
        upcaster.down(data)
    except ValueError:
        return True
    except Exception:  # it is looked at where the step runs
        return False
    return False


def _is_extreme(value: Any) -> bool:
    """Whether data holds a number at the bound of its type: `total * 100` is not wrong because 2**63 - 1 cents do not fit."""
    if isinstance(value, dict):
        return any(map(_is_extreme, value.values()))
    if isinstance(value, list):
        return any(map(_is_extreme, value))
    if isinstance(value, Decimal):
        return abs(value) >= 2**31 - 1
    return isinstance(value, (int, float)) and abs(value) >= 2**31 - 1


def _left_out(whole: Any, part: Any, path: str) -> str:
    """Return the first field that encoding added, "" if none."""
    if isinstance(whole, dict) and isinstance(part, Mapping):
        for name, value in whole.items():
            below = f"{path}.{name}" if path else name
            found = below if name not in part else _left_out(value, part[name], below)
            if found:
                return found
    elif isinstance(whole, list) and isinstance(part, (list, tuple)):
        return next(filter(None, map(_left_out, whole, part, [f"{path}[]"] * len(whole))), "")
    return ""
