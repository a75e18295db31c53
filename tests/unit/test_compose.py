"""docker-compose.yml: valid by the published schema, and true to our own settings."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from eventspine.cli import app
from eventspine.settings import Settings, environment_name

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((_ROOT / "docker-compose.yml").read_text())


def test_compose_file_fits_the_compose_specification() -> None:
    """By the schema that the Compose project publishes, which the package check-jsonschema carries."""
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"]
    done = subprocess.run(check, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_environment_names_are_settings(compose: Any) -> None:
    known = {environment_name(field.name) for field in dataclasses.fields(Settings)}
    for name, service in compose["services"].items():
        ours = {key for key in service.get("environment", {}) if key.startswith("EVENTSPINE_")}
        assert ours <= known, f"{name} sets {ours - known}"


def test_commands_exist_and_dependencies_are_services(compose: Any) -> None:
    commands = {
        command.name or getattr(command.callback, "__name__", "").replace("_", "-") for command in app.registered_commands
    }
    commands |= {group.name for group in app.registered_groups}
    for name, service in compose["services"].items():
        if service.get("image") == "eventspine":
            assert service["command"][0] in commands, f"{name} runs {service['command']}"
        assert service.get("depends_on", {}).keys() <= compose["services"].keys()
