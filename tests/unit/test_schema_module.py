"""What is found in a program's modules, and the workflow that checks them."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from eventspine import SchemaError, SettingsError
from eventspine.cli import app
from eventspine.schema_module import load_schema_module

_ROOT = Path(__file__).parents[2]
_numbers = itertools.count(1)

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a module into the current folder and return its name, a new one each time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(text: str) -> str:
        name = f"unit_schemas_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


_TYPES = """
from eventspine import Aggregate, EventType, on, upcaster
def version(number, *fields):
    return EventType.from_schema({"type": "record", "name": "Placed", "fields": list(fields)}, schema_version=number)
NOTE = {"name": "note", "type": "string", "default": ""}
"""


def test_what_stands_in_a_module_is_found_once(write: Write) -> None:
    name = write(
        _TYPES
        + """
V1 = version(1)
ALL = [V1, (version(2, NOTE),), {"three": version(3, NOTE)}]
ALL.append(ALL)
STEPS = [upcaster("Placed", from_version=1)(dict)]
STEP = STEPS[0]
class Order(Aggregate):
    pass
"""
    )
    found = load_schema_module([name, name])
    assert [each.schema_version for each in found.event_types] == [1, 2, 3]
    assert [each.from_version for each in found.upcasters] == [1]
    assert [each.__name__ for each in found.aggregates] == ["Order"]
    assert load_schema_module([]) == ([], [], [])


def test_the_type_that_knows_its_class_is_kept(write: Write) -> None:
    name = write(
        "import dataclasses\nfrom eventspine import EventType\n@dataclasses.dataclass\nclass Placed:\n    total: int\n"
        "TYPE = EventType.from_dataclass(Placed)\nPLAIN = EventType(TYPE.name, 1, TYPE.definition)\nBOTH = [PLAIN, TYPE]\n"
    )
    (found,) = load_schema_module([name]).event_types
    assert found.model is not None
    assert found.model.__name__ == "Placed"


def test_two_schemas_of_one_version_are_refused(write: Write) -> None:
    with pytest.raises(SchemaError, match="Placed version 1 is declared with two schemas"):
        load_schema_module([write(_TYPES + "A = version(1)\nB = version(1, NOTE)\n")])


def test_what_can_not_be_imported_is_said(write: Write) -> None:
    with pytest.raises(SettingsError, match="can't be imported: ModuleNotFoundError: No module named 'shop_nowhere'"):
        load_schema_module(["shop_nowhere"])
    with pytest.raises(SettingsError, match="can't be imported: ZeroDivisionError"):
        load_schema_module([write("1 / 0\n")])
    with pytest.raises(SettingsError, match="is no name of a module"):
        load_schema_module(["shop/schemas.py"])
    with pytest.raises(SettingsError, match="holds no EventType"):
        load_schema_module([write("from eventspine import Aggregate\n")])
    with pytest.raises(SchemaError, match="invalid Avro schema"):
        load_schema_module([write(_TYPES + 'version(1, {"name": "x", "type": "nothing"})\n')])


_WORKFLOW = Path("docs/ci/schema-check.yml")


def test_the_workflow_fits_the_schema_of_github_s_workflows() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(_WORKFLOW)]
    done = subprocess.run(check, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_runs_a_command_that_is_there() -> None:
    workflow = yaml.safe_load((_ROOT / _WORKFLOW).read_text())
    runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    (command,) = [run.split() for run in runs if run.startswith("eventspine ")]
    group = next(each for each in app.registered_groups if each.name == command[1])
    assert group.typer_instance is not None
    assert command[2] in {each.name for each in group.typer_instance.registered_commands}
