"""Who may do what: logins to Kafka and Postgres, rights in both, secrets that change, and secrets that are not told.

One broker with a listener for each way to log in; whoever is in these tests has the rights on the page docs/security.md, and no
others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit, urlunsplit

import asyncpg
import pytest

import eventspine
from eventspine import PostgresEventStore, SettingsError
from eventspine.connect import open_pool
from eventspine.schemas.kafka import KafkaAccess, check_login
from tests.certificates import Authority, Signed
from tests.event_types import EVENT_TYPES, paid, placed
from tests.oracle import check_read_model, check_topics
from tests.processes import Process
from tests.secure_kafka import SecureKafka, TokenEndpoint, grant
from tests.secure_postgres import CERTIFIED_ROLE, SecurePostgres
from tests.waiting import wait_for

_ROOT = Path(__file__).parents[2]
_SECRETS = ("pass-word-of-scram", "next-word-of-scram", "secret-of-oauth", "key-of-the-key", "wrong-word")
_PASSWORD, _NEXT_PASSWORD, _CLIENT_SECRET, _KEY_PASSWORD, _WRONG = _SECRETS


class Kafka(NamedTuple):
    """The broker of this module, and what its clients need."""

    broker: SecureKafka
    tokens: TokenEndpoint
    authority: Authority
    stranger: Authority
    client: Signed


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    folder = tmp_path_factory.mktemp("secure")
    authority, stranger = Authority(folder / "authority"), Authority(folder / "stranger", "stranger")
    tokens = TokenEndpoint("oauth-relay", _CLIENT_SECRET, authority, lifetime_s=4)
    with tokens.serving():
        broker = SecureKafka(folder / "kafka", authority, tokens.jwks_url)
        try:
            broker.start()
            broker.set_password("scram-relay", _PASSWORD)
            yield Kafka(broker, tokens, authority, stranger, authority.sign("tls-relay", key_password=_KEY_PASSWORD))
        finally:
            broker.kill()


def logins(secure: Kafka, folder: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """Return, by listener, the broker's name of the user, and the settings that the user needs."""
    password_file, secret_file = folder / "password", folder / "client-secret"
    password_file.write_text(f"{_PASSWORD}\n")
    secret_file.write_text(secure.tokens.secret)
    trust = {"kafka_ssl_ca_file": str(secure.authority.certificate)}
    return {
        "mutual": (
            "CN=tls-relay",
            trust
            | {
                "kafka_security_protocol": "SSL",
                "kafka_ssl_certificate_file": str(secure.client.certificate),
                "kafka_ssl_key_file": str(secure.client.key),
                "kafka_ssl_key_password": _KEY_PASSWORD,
            },
        ),
        "scram": (
            "scram-relay",
            trust
            | {
                "kafka_security_protocol": "SASL_SSL",
                "kafka_sasl_mechanism": "SCRAM-SHA-512",
                "kafka_sasl_username": "scram-relay",
                "kafka_sasl_password_file": str(password_file),
            },
        ),
        "oauth": (
            "oauth-relay",
            trust
            | {
                "kafka_security_protocol": "SASL_SSL",
                "kafka_sasl_mechanism": "OAUTHBEARER",
                "kafka_oauth_token_url": secure.tokens.token_url,
                "kafka_oauth_client_id": "oauth-relay",
                "kafka_oauth_client_secret_file": str(secret_file),
                "kafka_oauth_scope": "events",
                "kafka_oauth_ca_file": str(secure.authority.certificate),
            },
        ),
    }


def give_rights(broker: SecureKafka, user: str, prefix: str) -> None:
    """Give a user the rights of docs/security.md for one topic prefix: the relay's, and those of the projection order_totals."""
    rights = grant(user, "topic", prefix, "create", "write", "describe_configs", prefixed=True)
    rights += grant(user, "topic", f"{prefix}-cursors", "read")
    rights += grant(user, "group", f"{prefix}-cursors-reader", "describe")
    rights += grant(user, "transactional_id", f"{prefix}relay", "write", prefixed=True)
    rights += grant(user, "topic", f"{prefix}Order", "read")
    rights += grant(user, "group", f"{prefix}order_totals", "read")
    broker.grant(rights)


class Running:
    """Processes of the command line at one listener."""

    def __init__(self, database: str, settings: Mapping[str, str], folder: Path) -> None:
        given = {"postgres_dsn": database, "session_timeout_s": "6", "consume_batch_events": "200", **settings}
        self._environment = {f"EVENTSPINE_{name.upper()}": value for name, value in given.items()}
        self._folder = folder
        self._started: list[Process] = []

    def start(self, *arguments: str, **settings: str) -> Process:
        given = {f"EVENTSPINE_{name.upper()}": value for name, value in settings.items()}
        output = self._folder / f"{len(self._started)}.log"
        process = Process(list(arguments), self._environment | given, output, _ROOT)
        self._started.append(process)
        return process

    def end(self) -> None:
        for process in self._started:
            process.popen.kill()
            process.popen.wait(30)
            for secret in _SECRETS:
                assert secret not in process.said, "a secret was told"


@asynccontextmanager
async def running(
    secure: Kafka, listener: str, database: str, topic_prefix: str, folder: Path, **settings: str
) -> AsyncIterator[Running]:
    user, login = logins(secure, folder)[listener]
    give_rights(secure.broker, user, topic_prefix)
    address = {"kafka_bootstrap": secure.broker.address(listener), "topic_prefix": topic_prefix}
    run = Running(database, {**address, **login, **settings}, folder)
    try:
        yield run
    finally:
        run.end()


async def append(store: PostgresEventStore, name: str, orders: int) -> None:
    for number in range(orders):
        await store.append(f"Order-{name}{number}", "Order", [placed(f"c{number}", number), paid(number)], expected_version=0)


async def published(pool: asyncpg.Pool, bootstrap: str, prefix: str, *alive: Process) -> None:
    """Wait until the topics are the log, as the oracle sees them, who needs no login."""

    async def look() -> str:
        for process in alive:
            process.check_running()
        try:
            await check_topics(pool, bootstrap, prefix)
        except (AssertionError, KeyError) as missing:
            return str(missing)
        return ""

    await wait_for(look, lambda said: not said, timeout_s=40, every_s=0.2)


@pytest.mark.parametrize("listener", ["mutual", "scram", "oauth"])
async def test_the_relay_publishes_over_each_login_with_the_least_rights(
    listener: str, secure: Kafka, store: PostgresEventStore, pool: asyncpg.Pool, database: str, topic_prefix: str, tmp_path: Path
) -> None:
    await append(store, "a", 20)
    async with running(secure, listener, database, topic_prefix, tmp_path) as run:
        relay = run.start("relay", "run")
        await published(pool, secure.broker.endpoint, topic_prefix, relay)
        if listener == "oauth":  # the relay outlives its token more than once
            given = secure.tokens.given
            await wait_for(lambda: secure.tokens.given, lambda seen: seen >= given + 4)  # of two clients
        await append(store, "b", 5)
        await published(pool, secure.broker.endpoint, topic_prefix, relay)
        await relay.stop()


async def test_a_password_that_changes_while_relay_and_consumer_run(
    secure: Kafka, store: PostgresEventStore, pool: asyncpg.Pool, database: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Kafka asks for the password again every two seconds; the file gets the new one only after it has refused the old one."""
    await append(store, "a", 20)
    async with running(secure, "scram", database, topic_prefix, tmp_path) as run:
        relay, consumer = run.start("relay", "run"), run.start("consume", "tests.projections:OrderTotals")
        await published(pool, secure.broker.endpoint, topic_prefix, relay, consumer)
        secure.broker.set_password("scram-relay", _NEXT_PASSWORD)
        try:
            await wait_for(lambda: consumer.said, lambda said: "Kafka refused the login" in said)
            await append(store, "b", 5)
            await wait_for(lambda: relay.said, lambda said: "Kafka refused the login" in said, timeout_s=40)
            relay.check_running()
            consumer.check_running()
            (tmp_path / "password").write_text(_NEXT_PASSWORD)
            await published(pool, secure.broker.endpoint, topic_prefix, relay, consumer)

            async def applied() -> str:
                try:
                    await check_read_model(pool)
                except (AssertionError, asyncpg.PostgresError) as missing:
                    return str(missing)
                return ""

            await wait_for(applied, lambda said: not said, timeout_s=30, every_s=0.2)
            await relay.stop()
            await consumer.stop()
        finally:
            secure.broker.set_password("scram-relay", _PASSWORD)


async def test_a_login_that_is_wrong_from_the_start_ends_the_process_soon(
    secure: Kafka, database: str, topic_prefix: str, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text(_WRONG)
    stranger = secure.stranger.sign("stranger")
    mistakes: list[tuple[str, dict[str, str], str]] = [
        (
            "scram",
            {"kafka_sasl_password_file": str(wrong)},
            "check kafka_sasl_mechanism, kafka_sasl_username, kafka_sasl_password_file",
        ),
        ("oauth", {"kafka_oauth_client_secret_file": str(wrong)}, "kafka_oauth_client_secret_file, kafka_oauth_token_url"),
        ("scram", {"kafka_ssl_ca_file": str(secure.stranger.certificate)}, "kafka_ssl_ca_file"),
        (
            "mutual",
            {"kafka_ssl_certificate_file": str(stranger.certificate), "kafka_ssl_key_file": str(stranger.key)},
            "kafka_ssl_certificate_file",
        ),
    ]
    waiting: list[tuple[Running, Process, str]] = []
    try:
        for number, (listener, mistake, said) in enumerate(mistakes):
            folder = tmp_path / str(number)
            folder.mkdir()
            _, login = logins(secure, folder)[listener]
            address = {"kafka_bootstrap": secure.broker.address(listener), "topic_prefix": topic_prefix}
            run = Running(database, {**address, **login, **mistake}, folder)
            waiting.append((run, run.start("relay", "run"), said))
        for _, process, said in waiting:
            assert await process.ended(30) == 2
            assert "Kafka refused the login" in process.said
            assert said in process.said
            assert "Traceback" not in process.said
    finally:
        for run, _, _ in waiting:
            run.end()


def test_a_broker_that_is_away_is_not_for_the_settings_to_mend(caplog: pytest.LogCaptureFixture, secure: Kafka) -> None:
    away = KafkaAccess(bootstrap="127.0.0.1:1", security_protocol="SSL", ssl_ca_file=str(secure.authority.certificate))
    check_login(away, timeout_s=0.6)
    assert "Kafka does not answer" in caplog.text


@pytest.fixture(scope="module")
def postgres_by_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Authority, Authority]]:
    """DSN of a server that wants TLS, and two authorities: the server's, and one it does not know."""
    folder = tmp_path_factory.mktemp("postgres-tls")
    authority, stranger = Authority(folder / "authority"), Authority(folder / "stranger", "stranger")
    server = SecurePostgres(folder / "postgres", authority)
    try:
        server.start()
        yield server.endpoint, authority, stranger
    finally:
        server.stop()


def by_tls(dsn: str, *, user: str = "", **options: object) -> str:
    parts = urlsplit(dsn)
    netloc = f"{user}@{parts.netloc.rpartition('@')[2]}" if user else parts.netloc
    return urlunsplit(parts._replace(netloc=netloc, query=urlencode(options)))


async def test_postgres_over_tls(postgres_by_tls: tuple[str, Authority, Authority]) -> None:
    dsn, authority, stranger = postgres_by_tls
    verified = by_tls(dsn, sslmode="verify-full", sslrootcert=authority.certificate)
    async with eventspine.connect(verified, event_types=EVENT_TYPES) as store:
        await store.append("Order-1", "Order", [placed()], expected_version=0)
        assert await store.pool.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        await store.pool.execute(f"CREATE ROLE {CERTIFIED_ROLE} LOGIN")

    certified, unknown = authority.sign(CERTIFIED_ROLE), stranger.sign(CERTIFIED_ROLE)
    shown = {"sslmode": "verify-full", "sslrootcert": authority.certificate}
    shown |= {"sslcert": certified.certificate, "sslkey": certified.key}
    async with open_pool(by_tls(dsn, user=CERTIFIED_ROLE, **shown), max_connections=1) as pool:
        assert await pool.fetchval("SELECT current_user") == CERTIFIED_ROLE

    of_stranger: dict[str, Any] = {"sslcert": unknown.certificate, "sslkey": unknown.key}
    # From TLS 1.3 on, the server judges after the handshake, and what it says may be lost with the connection.
    of_stranger["ssl_max_protocol_version"] = "TLSv1.2"
    refused: list[tuple[dict[str, Any], str]] = [
        ({"sslmode": "disable"}, "Postgres refused the connection"),
        ({"sslmode": "verify-full", "sslrootcert": stranger.certificate}, "sslrootcert"),
        ({"sslmode": "verify-full", "sslrootcert": "absent.crt"}, "absent.crt"),
        ({**shown, "sslcert": "absent.crt"}, "absent.crt"),
        ({"user": CERTIFIED_ROLE, "sslmode": "verify-full", "sslrootcert": authority.certificate}, "client certificate"),
        ({"user": CERTIFIED_ROLE, **shown, **of_stranger}, "sslcert"),
    ]
    for options, said in refused:
        with pytest.raises(SettingsError, match=said):
            async with open_pool(by_tls(dsn, **options), max_connections=1):
                pass


async def test_the_relay_under_a_role_of_its_own(
    kafka: str, store: PostgresEventStore, pool: asyncpg.Pool, database: str, topic_prefix: str, tmp_path: Path
) -> None:
    await append(store, "a", 5)
    role = database.rpartition("/")[2] + "_relay"
    run = Running(database, {"kafka_bootstrap": kafka, "topic_prefix": topic_prefix}, tmp_path)
    parts = urlsplit(database)
    limited = urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))
    try:
        assert await run.start("grant", role, "--relay").ended() == 2
        await pool.execute(f"CREATE ROLE {role} LOGIN")
        assert await run.start("grant", role, "--relay").ended() == 0
        for value_format, prefix in (("data", f"{topic_prefix}a."), ("envelope", f"{topic_prefix}b.")):
            relay = run.start("relay", "run", postgres_dsn=limited, value_format=value_format, topic_prefix=prefix)
            await published(pool, kafka, prefix, relay)
            await relay.stop()
        async with open_pool(limited, max_connections=1) as own:
            for statement in (
                "INSERT INTO events SELECT * FROM events",
                "UPDATE events SET version = 9",
                "DELETE FROM events",
                "TRUNCATE events",
                "INSERT INTO links SELECT * FROM links",
                "INSERT INTO event_types SELECT * FROM event_types",
                "UPDATE schemas SET definition = ''",
                "INSERT INTO outbox SELECT * FROM outbox",
                "DELETE FROM outbox",
                "SELECT * FROM subject_keys",
                "SELECT * FROM snapshots",
                "ALTER TABLE events DISABLE TRIGGER ALL",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await own.execute(statement)
            await own.execute("TRUNCATE outbox_1")
    finally:
        run.end()
        await pool.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
