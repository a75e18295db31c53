"""What every part that talks to Kafka shares: client settings, topic names, and the client's errors in our own words."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from .errors import EventspineError, SettingsError, Unavailable
from .kafka_access import KafkaAccess

__all__ = [
    "KafkaAccess",
    "answer_of",
    "check_login",
    "client_settings",
    "is_refused_record",
    "kafka_error",
    "topic_of",
    "translated_kafka",
]

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_REFUSED: Final = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError._INVALID_ARG,
    KafkaError.INVALID_REPLICATION_FACTOR,
    KafkaError.INVALID_PARTITIONS,
    KafkaError.INVALID_CONFIG,
    KafkaError.POLICY_VIOLATION,
    KafkaError.TOPIC_EXCEPTION,
}
_OURS_TO_MEND: Final = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_RECORD}
_LOGIN_REFUSED: Final = {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError._SSL}


def client_settings(kafka: str | KafkaAccess) -> dict[str, Any]:
    """Return the librdkafka settings that all our clients have in common. Secrets are among them: never log them.

    The client's own chatter about brokers that come and go is silenced: our loops say it once, when the state changes. A refused
    login is otherwise known to the client alone, whose calls just take until their time is out: here it is raised by the next
    `poll`, `consume` or `flush`, as Unavailable, since the next client reads the files again and may have the new password.

    Raises:
        SettingsError: a file of the access can't be read or does not hold what it should.
    """
    settings = {"bootstrap.servers": kafka} if isinstance(kafka, str) else kafka.to_client()

    def heard(error: KafkaError) -> None:
        if not _refuses_login(error):
            return
        refused = _login_refused(kafka, error)
        if _is_about_token(error):  # the token that we have may still do; if not, the broker will say so
            logger.warning("%s", refused)
            return
        raise Unavailable(refused)

    return {
        **settings,
        "client.id": "eventspine",
        "log_level": 2,
        "reconnect.backoff.max.ms": 1000,
        "socket.keepalive.enable": True,
        "error_cb": heard,
    }


def check_login(kafka: str | KafkaAccess, *, timeout_s: float = 10.0) -> None:
    """Log in to Kafka once, to learn early whether the settings are right. Blocks.

    To be called at the start: whoever runs already waits instead, since a login that was right before may be right again soon,
    as while a password is exchanged. Returns also when nobody answers in time, which is not for the settings to mend.

    Raises:
        SettingsError: Kafka refuses the login or its certificate is not to be trusted, and no broker took it within 3 s;
            or a file of the access can't be read.
    """
    if isinstance(kafka, str):
        return
    refusals: list[KafkaError] = []

    def heard(error: KafkaError) -> None:
        if _refuses_login(error):
            refusals.append(error)

    started, said = time.monotonic(), "it was given no time"
    try:
        client = AdminClient(client_settings(kafka) | {"error_cb": heard})
        while time.monotonic() - started < timeout_s:
            try:
                client.list_topics(timeout=0.5)
            except KafkaException as error:
                said = error.args[0].str()
            else:
                return
            client.poll(0)
            if refusals and time.monotonic() - started > min(3.0, timeout_s):  # a broker that starts may refuse at first
                raise SettingsError(_login_refused(kafka, refusals[0]))
    except KafkaException as error:
        raise SettingsError(f"Kafka's client refuses the settings: {error.args[0].str()}") from error
    logger.warning("Kafka does not answer: %s", said)


def answer_of(admin: AdminClient, asked: Future[Answer], *, timeout_s: float = 40.0) -> Answer:
    """Wait for the answer to what an admin client was asked. Blocks, but not where the login is refused.

    Raises:
        KafkaException: the broker refuses, or nobody answers in time.
        Unavailable: the login is refused.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return asked.result(0.2)
        except TimeoutError:
            admin.poll(0)
            if time.monotonic() > deadline:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from None


def _refuses_login(error: KafkaError) -> bool:
    """Whether the client reports that a broker refuses us, or we the broker.

    A broker that does not like our certificate says so by a TLS alert after the handshake, for which the client has no code.
    """
    alert = "SSL routines" in error.str() and " alert " in error.str()
    return error.code() in _LOGIN_REFUSED or (error.code() == KafkaError._TRANSPORT and alert)


def _is_about_token(error: KafkaError) -> bool:
    """Whether it is the token endpoint that refused. The client has one code for this and for the broker's refusal."""
    return error.code() == KafkaError._AUTHENTICATION and error.str().startswith("Failed to acquire")


def _login_refused(kafka: str | KafkaAccess, error: KafkaError) -> str:
    names = "kafka_security_protocol" if isinstance(kafka, str) else kafka.login_settings
    return f"Kafka refused the login: {error.str()}; check {names}"


def topic_of(stream_type: str, prefix: str) -> str:
    """Return the topic of a category: `events.Order` for `Order`."""
    return prefix + stream_type


@contextmanager
def translated_kafka(doing: str) -> Iterator[None]:
    """Turn what the Kafka client raises inside into an EventspineError; the client's error stays as its cause.

    Raises:
        SettingsError: the broker refuses us: rights or a setting.
        EventspineError: the broker refuses a record for what it is.
        Unavailable: anything else: start over with new clients.
    """
    try:
        yield
    except KafkaException as error:
        raise kafka_error(error.args[0], doing) from error


def is_refused_record(error: KafkaError) -> bool:
    """Whether the broker refuses a record for what it is, so that trying again is in vain."""
    return error.code() in _OURS_TO_MEND


def kafka_error(error: KafkaError, doing: str) -> EventspineError:
    """Return our error for one of the Kafka client's."""
    said = f"{doing}: {error.str()} ({error.name()})"
    if error.code() in _REFUSED:
        return SettingsError(f"Kafka refused {said}; check the rights and the settings")
    if is_refused_record(error):
        return EventspineError(f"Kafka refused {said}; raise the topic's max.message.bytes")
    return Unavailable(f"Kafka failed {said}")
