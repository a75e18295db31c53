"""Settings: where each comes from, which wins, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from eventspine import SettingsError
from eventspine.projection_module import load_projection
from eventspine.settings import Settings, environment_name, load_settings


def test_flag_wins_over_environment_over_file_over_stack(tmp_path: Path) -> None:
    file = tmp_path / "eventspine.toml"
    file.write_text('postgres_dsn = "file"\nkafka_bootstrap = "file"\ntopic_prefix = "file."\ntopic_partitions = 12\n')
    stack = {"postgres_dsn": "stack", "kafka_bootstrap": "stack", "relay_name": "stack"}
    environment = {"EVENTSPINE_POSTGRES_DSN": "environment", "EVENTSPINE_KAFKA_BOOTSTRAP": "environment", "PATH": "/bin"}
    settings = load_settings({"postgres_dsn": "flag", "topic_prefix": None}, environment, file, stack)
    assert settings == dataclasses.replace(
        Settings(),
        postgres_dsn="flag",
        kafka_bootstrap="environment",
        topic_prefix="file.",
        relay_name="stack",
        topic_partitions=12,
    )


def test_environment_is_typed() -> None:
    settings = load_settings({}, {"EVENTSPINE_TOPIC_PARTITIONS": "3", "EVENTSPINE_GIVE_UP_AFTER_S": "1.5"})
    assert (settings.topic_partitions, settings.give_up_after_s) == (3, 1.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("postgres_dns = 'x'", "there is no setting 'postgres_dns'"),
        ("topic_partitions = 'six'", "not a valid int"),
        ("topic_partitions = true", "not a valid int"),
        ("postgres_dsn = 5", "not a valid str"),
        ("nonsense", "settings file"),
    ],
)
def test_bad_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "eventspine.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=said):
        load_settings({}, {}, file)


def test_missing_file_that_was_named_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load_settings({}, {}, tmp_path / "absent.toml")


def test_what_is_needed_and_missing_says_how_to_set_it() -> None:
    with pytest.raises(SettingsError, match=r"eventspine up.*EVENTSPINE_POSTGRES_DSN"):
        Settings().need_postgres()
    assert Settings(postgres_dsn="x").need_read_model() == "x"


def test_page_lists_every_setting() -> None:
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    for field in dataclasses.fields(Settings):
        row = f"| `{field.name}` | `{environment_name(field.name)}` | `{field.default!r}` | {field.metadata['meaning']} |"
        assert row in page


@pytest.mark.parametrize("path", ["nothing", "no.such.module:X", "json:loads", "json:absent"])
def test_projection_that_can_not_be_loaded(path: str) -> None:
    with pytest.raises(SettingsError):
        load_projection(path)
