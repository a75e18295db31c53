from __future__ import annotations

import importlib
import inspect
import pickle
import re
from pathlib import Path
from types import ModuleType

import pytest

import eventspine
from eventspine.schemas import errors

PACKAGES = ["", ".schemas", ".store", ".store.postgres", ".relay", ".consumers"]
CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.EventspineError)]


def tree(cls: type[BaseException], indent: str = "") -> list[str]:
    """Return the names of a class's subclasses of this file, drawn as the docstring draws them."""
    children = [child for child in cls.__subclasses__() if child.__module__ == errors.__name__]
    lines = []
    for child in children:
        last = child is children[-1]
        lines.append(indent + ("└── " if last else "├── ") + child.__name__)
        lines += tree(child, indent + ("    " if last else "│   "))
    return lines


def test_the_docstring_draws_the_tree() -> None:
    drawn = [line.strip("\n") for line in (errors.__doc__ or "").splitlines() if re.search("──", line)]
    names_only = [re.match(r"[│├└─ ]*\w+", line[4:]) for line in drawn]
    assert [match[0] for match in names_only if match] == tree(errors.EventspineError)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_says_in_a_sentence_what_it_means(cls: type[BaseException]) -> None:
    first_line = (cls.__doc__ or "").splitlines()[0]
    assert re.fullmatch(r"[A-Z].*\.", first_line), first_line
    assert issubclass(cls, errors.EventspineError)
    assert cls.__name__ in eventspine.__all__


@pytest.mark.parametrize(
    ("error", "message", "facts"),
    [
        (
            errors.ConcurrencyError("Order-1", expected=3, actual=5),
            "stream 'Order-1' is at version 5, not at the expected 3; read the stream again",
            {"stream_id": "Order-1", "expected": 3, "actual": 5},
        ),
        (
            errors.ConcurrencyError("Order-1", expected=eventspine.NO_STREAM, actual=5),
            "not at the expected no stream",
            {"expected": eventspine.NO_STREAM},
        ),
        (
            errors.EventIdTaken("Order-1", event_ids=["a", "b"]),
            "append to 'Order-1' refused: event id a, b is already recorded",
            {"stream_id": "Order-1", "event_ids": ["a", "b"]},
        ),
        (
            errors.InvalidEvent("too large", stream_id="Order-1", event_type="OrderPaid"),
            "OrderPaid for stream 'Order-1': too large",
            {"stream_id": "Order-1", "event_type": "OrderPaid", "reason": "too large"},
        ),
        (errors.InvalidEvent("too large"), "too large", {"stream_id": "", "event_type": "", "reason": "too large"}),
    ],
)
def test_errors_carry_their_facts(error: Exception, message: str, facts: dict[str, object]) -> None:
    assert message in str(error)
    assert "\n" not in str(error)
    assert {name: getattr(error, name) for name in facts} == facts


@pytest.mark.parametrize(
    "error",
    [
        errors.ConcurrencyError("Order-1", expected=eventspine.ANY, actual=5),
        errors.ConditionFailed("Order-1", after=3, position=5),
        errors.EventIdTaken("Order-1", event_ids=["a"]),
        errors.UnknownEventType("unknown", stream_id="Order-1", event_type="OrderPaid"),
        errors.LocalStackError("it died", log_path=Path("log")),
        errors.Unavailable("away"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_pass_between_processes(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_what_callers_of_the_standard_library_expect() -> None:
    assert issubclass(eventspine.UnknownEventType, eventspine.InvalidEvent)
    for cls in (eventspine.InvalidEvent, eventspine.SchemaError, eventspine.SettingsError):
        assert issubclass(cls, ValueError)
    assert not issubclass(eventspine.Unavailable, OSError)  # else `except OSError` in a handler would swallow it


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_sorted_and_complete(name: str) -> None:
    package = importlib.import_module(f"eventspine{name}")
    names = package.__all__
    assert len(set(names)) == len(names)
    assert names == sorted(names, key=_isort_key)
    public = {
        key
        for key, value in vars(package).items()
        if not key.startswith("_") and not isinstance(value, ModuleType) and key != "annotations"
    }
    assert set(names) == public


def _isort_key(name: str) -> tuple[int, str]:
    """CONSTANTS, Classes, functions: the order that ruff (RUF022) keeps."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)
