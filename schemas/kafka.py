"""What every part that talks to Kafka shares: client settings, topic names, and the client's errors in our own words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from confluent_kafka import KafkaError, KafkaException

from .errors import EventspineError, SettingsError, Unavailable

__all__ = ["client_settings", "kafka_error", "topic_of", "translated_kafka"]

_REFUSED: Final = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError._AUTHENTICATION,
    KafkaError._INVALID_ARG,
    KafkaError.INVALID_REPLICATION_FACTOR,
    KafkaError.INVALID_PARTITIONS,
    KafkaError.INVALID_CONFIG,
    KafkaError.POLICY_VIOLATION,
    KafkaError.TOPIC_EXCEPTION,
}
_OURS_TO_MEND: Final = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_RECORD}


def client_settings(bootstrap: str) -> dict[str, str | int | float | bool]:
    """Return the librdkafka settings that all our clients have in common.

    The client's own chatter about brokers that come and go is silenced: our loops say it once, when the state changes.
    """
    return {
        "bootstrap.servers": bootstrap,
        "client.id": "eventspine",
        "log_level": 2,
        "reconnect.backoff.max.ms": 1000,
        "socket.keepalive.enable": True,
    }


def topic_of(stream_type: str, prefix: str) -> str:
    """Return the topic of a category: `events.Order` for `Order`."""
    return prefix + stream_type


@contextmanager
def translated_kafka(doing: str) -> Iterator[None]:
    """Turn what the Kafka client raises inside into an EventspineError; the client's error stays as its cause.

    Raises:
        SettingsError: the broker refuses us: rights, login or a setting.
        EventspineError: the broker refuses a record for what it is.
        Unavailable: anything else: start over with new clients.
    """
    try:
        yield
    except KafkaException as error:
        raise kafka_error(error.args[0], doing) from error


def kafka_error(error: KafkaError, doing: str) -> EventspineError:
    """Return our error for one of the Kafka client's."""
    said = f"{doing}: {error.str()} ({error.name()})"
    if error.code() in _REFUSED:
        return SettingsError(f"Kafka refused {said}; check the rights and the settings")
    if error.code() in _OURS_TO_MEND:
        return EventspineError(f"Kafka refused {said}; raise the topic's max.message.bytes")
    return Unavailable(f"Kafka failed {said}")
