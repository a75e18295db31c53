"""Settings: one frozen object, read once at the edge from flags, environment, a TOML file and the local stack."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .schemas import SettingsError
from .schemas.kafka_access import KafkaAccess

__all__ = ["Settings", "load_settings"]

_DEFAULT_FILE = Path("eventspine.toml")


def _setting(default: Any, meaning: str, *, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"meaning": meaning, "secret": secret})


@dataclass(frozen=True)
class Settings:
    """Every setting. In the environment each is called `EVENTSPINE_` and its name in capitals; in TOML, its name.

    Where a setting is given twice, a flag wins over the environment, that over the file, and that over the local stack.
    """

    postgres_dsn: str = _setting("", "where the events are: postgresql://user@host:port/database")
    dynamodb_dsn: str = _setting("", "where events in DynamoDB are: dynamodb://TABLE?region=…&endpoint=…")
    kafka_bootstrap: str = _setting("", "Kafka brokers: host:port,host:port")
    kafka_security_protocol: str = _setting("PLAINTEXT", "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL")
    kafka_sasl_mechanism: str = _setting("", "how to log in to Kafka: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER")
    kafka_sasl_username: str = _setting("", "user of PLAIN and SCRAM")
    kafka_sasl_password: str = _setting("", "the user's password", secret=True)
    kafka_sasl_password_file: str = _setting("", "file that holds the password, read again for each connection")
    kafka_ssl_ca_file: str = _setting("", "certificates (PEM) that sign the brokers'; the system's if empty")
    kafka_ssl_certificate_file: str = _setting("", "certificate (PEM) that the client shows to brokers")
    kafka_ssl_key_file: str = _setting("", "the certificate's key (PEM)")
    kafka_ssl_key_password: str = _setting("", "password of the key, if it is encrypted", secret=True)
    kafka_oauth_token_url: str = _setting("", "where OAUTHBEARER gets tokens: https://host/token")
    kafka_oauth_client_id: str = _setting("", "client id at the token endpoint")
    kafka_oauth_client_secret: str = _setting("", "the client's secret", secret=True)
    kafka_oauth_client_secret_file: str = _setting("", "file that holds the secret, read again for each connection")
    kafka_oauth_scope: str = _setting("", "scope to ask for")
    kafka_oauth_ca_file: str = _setting("", "certificates (PEM) that sign the token endpoint's; the system's if empty")
    read_model_dsn: str = _setting(
        "", "where projections keep rows: postgresql://, redis://, opensearch[+https]://; the events' database if empty"
    )
    topic_prefix: str = _setting("events.", "topics are called by it and the category: events.Order")
    relay_name: str = _setting("relay", "relays of one name are one relay, which share its shards")
    source: str = _setting("/eventspine", "the header ce_source of published events")
    value_format: str = _setting("data", "a published record's value: data, or envelope (one record of envelope and data)")
    subject_strategy: str = _setting(
        "TopicRecordNameStrategy", "how subjects are called: TopicRecordNameStrategy, RecordNameStrategy or TopicNameStrategy"
    )
    registry_url: str = _setting("", "a schema registry of your own that gives the ids of new schemas: http://host:8081")
    registry_user: str = _setting("", "user of that registry (HTTP basic)")
    registry_password: str = _setting("", "the user's password", secret=True)
    schemas: str = _setting("", "modules that declare event types and upcasters, for consume and schema check: shop.events,…")
    topic_partitions: int = _setting(6, "partitions of a new topic")
    topic_replication: int = _setting(-1, "replicas of a new topic; -1 takes the broker's default")
    topic_retention_ms: int = _setting(-1, "how long a new topic keeps events, in milliseconds; -1 is for ever")
    max_event_bytes: int = _setting(1_000_000, "limit of encoded data plus metadata of one event, in bytes")
    relay_delivery: str = _setting(
        "exactly-once", "exactly-once (Kafka transactions), or at-least-once: sooner, and some may be there twice"
    )
    relay_compression: str = _setting("zstd", "of records: zstd, lz4, snappy, gzip or none")
    relay_shards: int = _setting(0, "shards of a new relay, each published by one process at a time; 0: what it has, or 1")
    relay_routing: str = _setting("", "what is published where: MODULE:NAME of a Routing; if empty, all by category")
    relay_batch_events: int = _setting(20_000, "events in one Kafka transaction at most")
    relay_lease_s: float = _setting(5.0, "how soon a dead relay's shards go to the others, in seconds")
    consume_batch_events: int = _setting(10_000, "events in one transaction of a projection at most")
    group_protocol: str = _setting("classic", "of consumer groups: classic, or consumer (KIP-848; Kafka 4.0 or later)")
    group_instance_id: str = _setting("", "of one consumer process: it keeps its partitions over a short restart")
    session_timeout_s: float = _setting(10.0, "how soon Kafka gives a dead consumer's partitions to the others, in seconds")
    give_up_after_s: float = _setting(300.0, "how long relay and consumers retry while a server is away, in seconds")
    metrics_port: int = _setting(0, "port of the metrics for Prometheus, of consume and relay run; 0 is none")
    metrics_host: str = _setting("127.0.0.1", "address that the metrics are served on")
    folder: str = _setting(".eventspine", "data folder of the local stack (eventspine up)")

    def need_postgres(self) -> str:
        return self._need("postgres_dsn")

    def need_kafka(self) -> str:
        return self._need("kafka_bootstrap")

    def kafka(self) -> KafkaAccess | str:
        """How to reach Kafka: an address, or more where a setting of its security is set.

        Raises:
            SettingsError: kafka_bootstrap is not set, or the settings of Kafka's security contradict each other or lack one.
        """
        bootstrap = self.need_kafka()
        access = KafkaAccess(**{each.name: getattr(self, f"kafka_{each.name}") for each in dataclasses.fields(KafkaAccess)})
        return bootstrap if access == KafkaAccess(bootstrap=bootstrap) else access

    def need_read_model(self) -> str:
        return self.read_model_dsn or self.need_postgres()

    def schema_modules(self) -> list[str]:
        """The names in `schemas`, one by one."""
        return [name.strip() for name in self.schemas.split(",") if name.strip()]

    def _need(self, name: str) -> str:
        value: str = getattr(self, name)
        if not value:
            raise SettingsError(
                f"{name} is not set and no local stack runs in {self.folder}: run `eventspine up`, or set "
                f"{environment_name(name)}, --{name.replace('_', '-')} or {name} in {_DEFAULT_FILE}"
            )
        return value


_SECRETS = frozenset(each.name for each in dataclasses.fields(Settings) if each.metadata["secret"])


def environment_name(setting: str) -> str:
    return f"EVENTSPINE_{setting.upper()}"


def load_settings(
    flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None = None, stack: Mapping[str, str] | None = None
) -> Settings:
    """Merge what is set in the four places; flags that are None count as not given.

    `file` must exist if given; otherwise `eventspine.toml` in the working folder is read if it is there. `stack` holds the
    endpoints of a running local stack.

    Raises:
        SettingsError: a name is unknown, a value is not of its type, or the file can't be read.
    """
    types = {each.name: type(each.default) for each in dataclasses.fields(Settings)}
    chosen: dict[str, Any] = dict(stack or {})
    path = file or _DEFAULT_FILE
    if file is not None or path.exists():
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SettingsError(f"settings file {path}: {error}") from error
        chosen |= values
        _check_names(values, types, f"settings file {path}")
    from_environment = {name: environment[environment_name(name)] for name in types if environment_name(name) in environment}
    chosen |= from_environment
    chosen |= {name: value for name, value in flags.items() if value is not None}
    return Settings(**{name: _typed(name, value, types[name]) for name, value in chosen.items()})


def _check_names(values: Mapping[str, Any], types: Mapping[str, type], where: str) -> None:
    for name in values:
        if name not in types:
            raise SettingsError(f"{where}: there is no setting {name!r}; the settings are {', '.join(types)}")


def _typed(name: str, value: Any, wanted: type) -> Any:
    try:
        if wanted is str and not isinstance(value, str):
            raise ValueError
        return wanted(value) if not isinstance(value, bool) else int("no number")
    except (TypeError, ValueError) as error:
        shown = "…" if name in _SECRETS else repr(value)
        raise SettingsError(f"{name}={shown} ({environment_name(name)}): not a valid {wanted.__name__}") from error
