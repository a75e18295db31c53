"""What a schema registry says to event types, under the names that clients of Confluent's give their subjects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from .check_report import Mistake, Report
from .relay.router import SUBJECT_NAMES
from .schemas import EventType, SettingsError, Unavailable
from .schemas.kafka import topic_of
from .schemas.shape import shape_of

__all__ = ["ask_registry", "strategies_of"]


def strategies_of(chosen: str) -> list[str]:
    """Return the subject name strategies that an option names: one of them, or `all`.

    Raises:
        SettingsError: there is no such strategy.
    """
    if chosen == "all":
        return list(SUBJECT_NAMES)
    if chosen not in SUBJECT_NAMES:
        raise SettingsError(f"--strategy {chosen}: choose one of {', '.join(SUBJECT_NAMES)}, or all")
    return [chosen]


def ask_registry(
    report: Report,
    url: str,
    event_types: Iterable[EventType],
    categories: dict[str, set[str]],
    strategies: Sequence[str],
    topic_prefix: str,
) -> None:
    """Ask a registry whether each event type may become the next version of its subjects. A new subject takes anything.

    Raises:
        Unavailable: it does not answer.
        SettingsError: the client for registries is not installed, or the registry refuses to talk.
    """
    try:
        from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
        from confluent_kafka.schema_registry.error import SchemaRegistryError
    except ImportError as error:
        raise SettingsError('--registry needs more packages: pip install "eventspine[registry]"') from error
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"--registry {url}: give a URL, like http://127.0.0.1:8081")
    make: Any = SchemaRegistryClient
    try:
        with make({"url": url, "timeout": 20, "max.retries": 1}) as client:
            for event_type in event_types:
                topics = [topic_of(category, topic_prefix) for category in sorted(categories.get(event_type.name, ()))]
                subjects = _subjects(event_type, topics, strategies)
                if not subjects:
                    report.notes.append(
                        f"{event_type.name}: no event and no aggregate says in which category it is: the registry was not asked "
                        f"under {strategies[0]}"
                    )
                for subject, strategy in subjects.items():
                    try:
                        fits = client.test_compatibility_all_versions(subject, Schema(event_type.definition, "AVRO"))
                    except SchemaRegistryError as error:
                        if error.http_status_code != 404:
                            raise
                        report.count("new subjects")
                        continue
                    report.count("registry answers")
                    if not fits:
                        report.mistakes.append(_refused(client, event_type, subject, strategy))
    except SchemaRegistryError as error:
        raise SettingsError(f"the registry at {url} refused: {error}; check --registry and the rights there") from error
    except Exception as error:  # the client lets its HTTP library's errors through
        raise Unavailable(f"the registry at {url} is away: {error or type(error).__name__}") from error


def _subjects(event_type: EventType, topics: Sequence[str], strategies: Sequence[str]) -> dict[str, str]:
    """Return the subjects of an event type, each with the strategy that calls it so."""
    return {
        SUBJECT_NAMES[strategy](topic, event_type.full_name): strategy
        for strategy in strategies
        for topic in (topics if strategy != "RecordNameStrategy" else [""])
    }


def _refused(client: Any, event_type: EventType, subject: str, strategy: str) -> Mistake:
    other = _other_record(client, event_type, subject)
    what = f"the registry refuses {event_type.name} version {event_type.schema_version} under the subject {subject} ({strategy})"
    if other:
        details = (f"that subject holds the record {other}: under {strategy}, a topic takes one type of record",)
        advice = "publish with TopicRecordNameStrategy, or give this event type a category of its own"
    else:
        details = (f"compatibility there: {_level(client, subject)}",)
        advice = (
            "make the change compatible; `eventspine schema diff` shows which levels hold between two versions. "
            "Consumers that read through the registry can't be helped by upcasters"
        )
    return Mistake("registry", event_type.name, what, advice, details=details)


def _other_record(client: Any, event_type: EventType, subject: str) -> str:
    """Return the name of the record that a subject holds, if it is not this event type's; "" if it is."""
    name = shape_of(json.loads(client.get_latest_version(subject).schema.schema_str)).name
    return "" if name == event_type.full_name else name


def _level(client: Any, subject: str) -> str:
    from confluent_kafka.schema_registry.error import SchemaRegistryError

    try:
        return str(client.get_compatibility(subject))
    except SchemaRegistryError:  # the subject says nothing itself
        return str(client.get_compatibility())
