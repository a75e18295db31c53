"""Whether a program's classes take today's data: models of event types, and aggregates with their snapshots."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from .check_report import Mistake, Report
from .check_store import SavedSnapshot
from .schemas import DecodeError, Event, EventspineError, EventType
from .schemas.handlers import handlers_of
from .store import Aggregate

__all__ = ["Example", "check_aggregates", "check_model", "check_snapshots"]


class Example(NamedTuple):
    """Data of an event: as a version wrote it, and in today's shape."""

    version: int
    written: dict[str, Any]
    data: dict[str, Any]

    @property
    def origin(self) -> str:
        return f"written by version {self.version}"


def check_model(report: Report, event_type: EventType, examples: Iterable[Example]) -> None:
    """Make an instance of the event type's class of each example. What the class's own rules refuse (a minimum, a validator) is
    no mistake here: an example knows no rules."""
    model = event_type.model
    if model is None:
        return
    report.count("classes")
    named = f"class {model.__name__} and {event_type.name} version {event_type.schema_version}"
    required, optional = _fields_of(model)
    written = {member["name"] for member in event_type.schema["fields"]}
    lacking = sorted(written - required - optional)
    unknown = sorted(required - written)
    for fields, said in ((unknown, "requires what the schema does not have"), (lacking, "lacks what the schema has")):
        if fields:
            report.mistakes.append(
                Mistake(
                    "class",
                    event_type.name,
                    f"{named}: the class {said}: {', '.join(fields)}",
                    "bring the class and the schema together: add the field on the other side (with a default), or take it away",
                )
            )
    if unknown:
        return
    for example in examples:
        said = _refusal(event_type, model, example.data)
        if said:
            report.mistakes.append(
                Mistake(
                    "class",
                    event_type.name,
                    f"{named}: the class does not take what the schema lets pass: {said}",
                    "widen the class's type, or convert the data by an upcaster",
                    example.written,
                    example.origin,
                )
            )
            return


def check_aggregates(report: Report, aggregates: Iterable[type[Aggregate]], examples: Mapping[str, Sequence[Example]]) -> None:
    """Run each handler on the examples of its event type.

    A handler that asks the data for a field that is not there is wrong. One that fails otherwise may only miss a state that no
    example makes: it is reported where other examples pass in the same state, so that the data makes the difference. What a
    handler raises by itself (an error of the domain) is no mistake.
    """
    for aggregate in aggregates:
        handled = {name: method for name, method in handlers_of(aggregate, EventspineError).items() if name in examples}
        if not handled:
            continue
        report.count("aggregates")
        report.count("handlers", len(handled))
        try:
            states = [aggregate("example"), _lived(aggregate, handled, examples)]
        except Exception as error:  # a constructor of the user's own
            report.notes.append(
                f"{aggregate.__name__}({'example'!r}) can't be made, so that its handlers were not run: {error!r}"
            )
            continue
        for name, method in handled.items():
            _check_handler(report, states, f"{aggregate.__name__}.{method}", name, examples[name])


def check_snapshots(report: Report, snapshots: Mapping[type[Aggregate], Sequence[SavedSnapshot]]) -> None:
    """Restore each snapshot that has its aggregate's present `snapshot_version`."""
    for aggregate, saved in snapshots.items():
        foreign = 0
        for each in saved:
            try:
                state = msgspec.json.decode(each.data)["state"]
            except (KeyError, TypeError):
                foreign += 1
                continue
            report.count("snapshots")
            try:
                aggregate(each.stream_id.partition("-")[2]).restore(state)
            except Exception as error:  # whatever the state's types raise
                report.mistakes.append(
                    Mistake(
                        "snapshot",
                        "",
                        f"{aggregate.__name__} can't restore the snapshot {each.stream_id}@{each.version}: {_told(error)}",
                        "the state's shape has changed: older snapshots are ignored if "
                        f"{aggregate.__name__}.snapshot_version is {aggregate.snapshot_version + 1}",
                        state,
                        f"saved as snapshot_version {aggregate.snapshot_version}",
                    )
                )
                break
        if foreign:
            report.notes.append(
                f"{foreign:,} snapshots of {aggregate.stream_type} are not from a SnapshottedRepository: not restored"
            )


class _NoField(KeyError):
    """The data has no such field."""


class _Data(dict[str, Any]):
    """Data that tells its own missing fields from those of other dicts."""

    def __missing__(self, name: str) -> Any:
        raise _NoField(name)


def _check_handler(report: Report, states: Sequence[Aggregate], method: str, name: str, examples: Sequence[Example]) -> None:
    failed: list[tuple[Example, Exception]] = []
    passed = False
    for example in examples:
        errors = [_failure(copy.deepcopy(state), name, example) for state in states]
        wrong = next((error for error in errors if isinstance(error, (_NoField, DecodeError))), None)
        if wrong is not None and _is_fault(wrong):
            report.mistakes.append(_handler_mistake(method, name, example, wrong))
            return
        if all(isinstance(error, (AttributeError, LookupError, TypeError)) for error in errors):
            failed += [(example, error) for error in errors[-1:] if error is not None]
        else:
            passed = True
    if failed and passed:
        report.mistakes.append(_handler_mistake(method, name, *failed[0]))
    elif failed:
        report.notes.append(
            f"{method} fails on every example of {name} ({_told(failed[0][1])}): not judged, it may need another state"
        )


def _handler_mistake(method: str, name: str, example: Example, error: Exception) -> Mistake:
    if isinstance(error, _NoField):
        what = f"{method} asks {name} for the field {error.args[0]!r}, which its data does not have"
        advice = "use the fields of today's version, or keep this one"
    else:
        what = f"{method} fails on data that {name} may hold: {_told(error)}"
        advice = "handle such data, or convert it by an upcaster"
    return Mistake("handler", name, what, advice, example.written, example.origin)


def _failure(aggregate: Aggregate, name: str, example: Example) -> Exception | None:
    try:
        aggregate.replay(
            Event(
                event_type=name,
                data=_wrapped(copy.deepcopy(example.data)),
                stream_id=aggregate.stream_id,
                version=aggregate.version + 1,
            )
        )
    except Exception as error:  # whatever the handler raises
        return error
    return None


def _lived(aggregate: type[Aggregate], handled: Iterable[str], examples: Mapping[str, Sequence[Example]]) -> Aggregate:
    """Return an aggregate that has seen one event of each type that it handles, as far as it takes them."""
    state = aggregate("example")
    for name in handled:
        for example in itertools.islice(examples[name], 50):
            attempt = copy.deepcopy(state)
            if _failure(attempt, name, example) is None:
                state = attempt
                break
    return state


def _wrapped(value: Any) -> Any:
    if isinstance(value, dict):
        return _Data((name, _wrapped(each)) for name, each in value.items())
    return [_wrapped(each) for each in value] if isinstance(value, list) else value


def _fields_of(model: type) -> tuple[set[str], set[str]]:
    """Return the names by which a class takes data: those that it requires, and the others."""
    if dataclasses.is_dataclass(model):
        members = [each for each in dataclasses.fields(model) if each.init]
        missing = dataclasses.MISSING
        needed = {each.name for each in members if each.default is missing and each.default_factory is missing}
        return needed, {each.name for each in members} - needed
    required: set[str] = set()
    optional: set[str] = set()
    for name, each in getattr(model, "model_fields", {}).items():
        alias = each.validation_alias if isinstance(each.validation_alias, str) else each.alias
        (required if each.is_required() else optional).add(alias or name)
    return required, optional


def _refusal(event_type: EventType, model: type, data: dict[str, Any]) -> str:
    try:
        Event(event_type=event_type.name, data=copy.deepcopy(data)).data_as(model)
    except DecodeError as error:
        return _told(error.__cause__ or error) if _is_fault(error) else ""
    return ""


def _is_fault(error: Exception) -> bool:
    """Whether an error says that data has another shape, rather than that it breaks a rule of the class."""
    cause: Any = error.__cause__
    if isinstance(error, DecodeError) and hasattr(cause, "errors"):  # pydantic
        return any(_is_shape(str(each["type"])) for each in cause.errors())
    return not (isinstance(error, DecodeError) and cause is not None and isinstance(cause.__cause__, ValueError))


def _is_shape(kind: str) -> bool:
    """Source: https://docs.pydantic.dev/latest/errors/validation_errors/"""
    return kind in ("missing", "extra_forbidden", "enum", "literal_error", "none_required") or kind.endswith(
        ("_type", "_parsing", "_from_float", "_attributes_type")
    )


def _told(error: BaseException) -> str:
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:300]}" if said else type(error).__name__
