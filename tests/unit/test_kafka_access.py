"""How Kafka is reached: what of the settings is refused and how, and that no secret is shown."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError

from eventspine import SettingsError, Unavailable
from eventspine.schemas.kafka import KafkaAccess, client_settings, kafka_error
from eventspine.settings import Settings, load_settings
from tests.certificates import Authority

_SCRAM = {"security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512", "sasl_username": "relay", "sasl_password": "hush"}
_OAUTH = {
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "OAUTHBEARER",
    "oauth_token_url": "https://login.example/token",
    "oauth_client_id": "relay",
    "oauth_client_secret": "hush",
}


def access(**given: Any) -> KafkaAccess:
    return KafkaAccess(bootstrap="kafka:9092", **given)


def test_a_plain_address_needs_nothing_more() -> None:
    assert Settings(kafka_bootstrap="kafka:9092").kafka() == "kafka:9092"
    settings = client_settings("kafka:9092")
    assert settings["bootstrap.servers"] == "kafka:9092"
    assert not [name for name in settings if name.startswith(("sasl", "ssl", "security"))]


def test_settings_become_an_access() -> None:
    given = {f"EVENTSPINE_KAFKA_{name.upper()}": value for name, value in {"bootstrap": "kafka:9092", **_SCRAM}.items()}
    assert load_settings({}, given).kafka() == access(**_SCRAM)


def test_each_field_is_a_setting() -> None:
    settings = {field.name: field for field in dataclasses.fields(Settings)}
    for field in dataclasses.fields(KafkaAccess):
        setting = settings[f"kafka_{field.name}"]
        assert setting.metadata["secret"] == (not field.repr)
        assert setting.repr == field.repr
        assert field.name == "bootstrap" or setting.default == field.default


def test_what_the_client_gets() -> None:
    scram = client_settings(access(**_SCRAM))
    assert scram["security.protocol"] == "sasl_ssl"
    assert (scram["sasl.mechanism"], scram["sasl.username"], scram["sasl.password"]) == ("SCRAM-SHA-512", "relay", "hush")
    oauth = client_settings(access(**_OAUTH, oauth_scope="events"))
    assert {name: value for name, value in oauth.items() if name.startswith("sasl")} == {
        "sasl.mechanism": "OAUTHBEARER",
        "sasl.oauthbearer.method": "oidc",
        "sasl.oauthbearer.token.endpoint.url": "https://login.example/token",
        "sasl.oauthbearer.client.id": "relay",
        "sasl.oauthbearer.client.secret": "hush",
        "sasl.oauthbearer.scope": "events",
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"security_protocol": "TLS"}, "kafka_security_protocol is 'TLS'; it is one of PLAINTEXT, SSL"),
        ({"ssl_ca_file": "ca.crt"}, "kafka_ssl_ca_file is set, but kafka_security_protocol is PLAINTEXT, .* to SSL or SASL_SSL"),
        ({"sasl_username": "relay"}, "kafka_sasl_username is set, but kafka_security_protocol is PLAINTEXT, .* to SASL_SSL"),
        ({"security_protocol": "SSL", "oauth_scope": "x"}, "kafka_oauth_scope is set, but kafka_security_protocol is SSL"),
        ({"security_protocol": "SASL_PLAINTEXT", "ssl_ca_file": "x"}, "kafka_ssl_ca_file is set, but"),
        ({"security_protocol": "SASL_SSL"}, "kafka_sasl_mechanism is not set; it is one of PLAIN,"),
        ({**_SCRAM, "sasl_mechanism": "GSSAPI"}, "kafka_sasl_mechanism is 'GSSAPI'; it is one of"),
        ({**_SCRAM, "sasl_username": ""}, "kafka_sasl_mechanism is SCRAM-SHA-512, which needs kafka_sasl_username: set it"),
        ({**_SCRAM, "sasl_password": ""}, "needs kafka_sasl_password, or kafka_sasl_password_file"),
        ({**_SCRAM, "sasl_password_file": "x"}, "kafka_sasl_password and kafka_sasl_password_file are both set"),
        ({**_SCRAM, "oauth_client_id": "x"}, "kafka_oauth_client_id is set, but kafka_sasl_mechanism is SCRAM-SHA-512"),
        ({**_OAUTH, "oauth_token_url": ""}, "needs kafka_oauth_token_url: set it"),
        ({**_OAUTH, "oauth_client_id": ""}, "needs kafka_oauth_client_id: set it"),
        ({**_OAUTH, "oauth_client_secret": ""}, "needs kafka_oauth_client_secret, or"),
        ({**_OAUTH, "sasl_password": "hush"}, "kafka_sasl_password is set, but kafka_sasl_mechanism is OAUTHBEARER"),
        (
            {"security_protocol": "SSL", "ssl_certificate_file": "x"},
            "kafka_ssl_certificate_file is set without kafka_ssl_key_file",
        ),
        ({"security_protocol": "SSL", "ssl_key_file": "x"}, "kafka_ssl_key_file is set without kafka_ssl_certificate_file"),
        ({"security_protocol": "SSL", "ssl_key_password": "hush"}, "kafka_ssl_key_password is set, but no key"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        access(**given)
    assert "hush" not in str(refused.value)


def test_a_password_file_is_read_for_each_client(tmp_path: Path) -> None:
    file = tmp_path / "password"
    login = access(**(_SCRAM | {"sasl_password": "", "sasl_password_file": str(file)}))
    with pytest.raises(SettingsError, match=r"kafka_sasl_password_file: .*password can't be read: No such file"):
        client_settings(login)
    file.write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="it is not UTF-8"):
        client_settings(login)
    file.write_text("\n")
    with pytest.raises(SettingsError, match="is empty"):
        client_settings(login)
    for password in ("one", " with spaces "):
        file.write_text(f"{password}\n")
        assert client_settings(login)["sasl.password"] == password


def test_certificates_are_looked_at_before_the_client_does(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    mine, sealed = authority.sign("mine"), authority.sign("sealed", key_password="hush")
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("nonsense")
    good = {"security_protocol": "SSL", "ssl_ca_file": str(authority.certificate)}
    good |= {"ssl_certificate_file": str(mine.certificate), "ssl_key_file": str(mine.key)}
    assert client_settings(access(**good))["ssl.key.location"] == str(mine.key)
    with_sealed = good | {"ssl_certificate_file": str(sealed.certificate), "ssl_key_file": str(sealed.key)}
    assert client_settings(access(**with_sealed, ssl_key_password="hush"))["ssl.key.password"] == "hush"
    for mistake, said in (
        ({"ssl_ca_file": str(tmp_path / "absent")}, "kafka_ssl_ca_file: .*absent: No such file"),
        ({"ssl_ca_file": str(nonsense)}, "kafka_ssl_ca_file: .*nonsense: not valid"),
        ({"ssl_key_file": str(sealed.key)}, "kafka_ssl_key_file .*; give a certificate and its own key as PEM"),
        ({"ssl_key_file": str(tmp_path / "absent")}, "kafka_ssl_key_file .*No such file"),
        (with_sealed, "kafka_ssl_key_password if the key is encrypted"),
        (with_sealed | {"ssl_key_password": "wrong"}, "kafka_ssl_key_password if the key is encrypted"),
        ({"ssl_key_file": str(authority.sign("other").key)}, "not valid .*mismatch"),
    ):
        with pytest.raises(SettingsError, match=said):
            client_settings(access(**(good | mistake)))
    with pytest.raises(SettingsError, match=r"kafka_oauth_ca_file: .*absent"):
        client_settings(access(**_OAUTH, oauth_ca_file=str(tmp_path / "absent")))


@pytest.mark.parametrize(
    "given",
    [_SCRAM, _OAUTH, {"security_protocol": "SSL", "ssl_key_password": "hush", "ssl_key_file": "k", "ssl_certificate_file": "c"}],
)
def test_secrets_are_not_shown(given: dict[str, str]) -> None:
    login = access(**given)
    settings = load_settings({f"kafka_{name}": value for name, value in given.items()}, {})
    assert "hush" not in repr(login) + str(login) + repr(settings) + login.login_settings


def test_a_refused_login_is_raised_by_the_next_poll(caplog: pytest.LogCaptureFixture) -> None:
    heard = client_settings(access(**_SCRAM))["error_cb"]
    heard(KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"))
    heard(KafkaError(KafkaError._TRANSPORT, "Connection refused"))
    heard(KafkaError(KafkaError._TRANSPORT, "error:0A000126:SSL routines::unexpected eof while reading"))  # it stops
    with pytest.raises(
        Unavailable, match=r"Kafka refused the login: no; check kafka_sasl_mechanism, kafka_sasl_username, kafka_sasl_pass"
    ):
        heard(KafkaError(KafkaError._AUTHENTICATION, "no"))
    with pytest.raises(Unavailable, match="alert certificate required"):
        heard(KafkaError(KafkaError._TRANSPORT, "error:0A00045C:SSL routines::tlsv13 alert certificate required"))
    heard(KafkaError(KafkaError._AUTHENTICATION, "Failed to acquire SASL OAUTHBEARER token: away"))
    assert "Failed to acquire SASL OAUTHBEARER token: away; check" in caplog.text


def test_a_right_that_is_missing_is_for_the_settings_and_a_login_that_fails_in_a_call_is_for_another_try() -> None:
    assert isinstance(kafka_error(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), "to publish"), SettingsError)
    assert isinstance(kafka_error(KafkaError(KafkaError.SASL_AUTHENTICATION_FAILED), "to publish"), Unavailable)
