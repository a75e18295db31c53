"""How to reach Kafka and log in there: what is set, checked, as settings of the client."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

from .errors import SettingsError

__all__ = ["KafkaAccess"]

_PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_PASSWORD_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_OAUTH: Final = "OAUTHBEARER"


@dataclass(frozen=True, kw_only=True)
class KafkaAccess:
    """Where Kafka is, and how to log in there. Each field is the setting of the same name behind `kafka_`; "" is not set.

    Files are read for each new client: a password, secret or certificate that was exchanged is taken up without a restart.

    Raises:
        SettingsError: settings contradict each other, or one is missing.
    """

    bootstrap: str
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str = ""
    sasl_username: str = ""
    sasl_password: str = field(default="", repr=False)
    sasl_password_file: str = ""
    ssl_ca_file: str = ""
    ssl_certificate_file: str = ""
    ssl_key_file: str = ""
    ssl_key_password: str = field(default="", repr=False)
    oauth_token_url: str = ""
    oauth_client_id: str = ""
    oauth_client_secret: str = field(default="", repr=False)
    oauth_client_secret_file: str = ""
    oauth_scope: str = ""
    oauth_ca_file: str = ""

    def __post_init__(self) -> None:
        if self.security_protocol not in _PROTOCOLS:
            raise SettingsError(
                f"{_said('security_protocol')} is {self.security_protocol!r}; it is one of {', '.join(_PROTOCOLS)}"
            )
        self._check_group("ssl_", wanted="SSL" in self.security_protocol, by="SSL or SASL_SSL")
        self._check_group("sasl_", wanted=self._logs_in, by="SASL_SSL (or SASL_PLAINTEXT, where the network is trusted)")
        self._check_group("oauth_", wanted=self._logs_in, by="SASL_SSL")
        self._check_pair("ssl_certificate_file", "ssl_key_file")
        if self.ssl_key_password and not self.ssl_key_file:
            raise SettingsError(f"{_said('ssl_key_password')} is set, but no key: set {_said('ssl_key_file')}")
        if self._logs_in:
            self._check_mechanism()

    @property
    def _logs_in(self) -> bool:
        return self.security_protocol.startswith("SASL_")

    @property
    def login_settings(self) -> str:
        """The names of the settings to look at when the login is refused."""
        names = ["security_protocol"]
        if "SSL" in self.security_protocol:
            names += ["ssl_ca_file"] if self._logs_in else ["ssl_ca_file", "ssl_certificate_file"]
        if self._logs_in and self.sasl_mechanism == _OAUTH:
            names += ["oauth_client_id", self._secret_field("oauth_client_secret"), "oauth_token_url", "oauth_scope"]
        elif self._logs_in:
            names = ["sasl_mechanism", "sasl_username", self._secret_field("sasl_password"), *names]
        return ", ".join(map(_said, names))

    def _secret_field(self, name: str) -> str:
        return f"{name}_file" if getattr(self, f"{name}_file") else name

    def _check_mechanism(self) -> None:
        known = (*_PASSWORD_MECHANISMS, _OAUTH)
        if self.sasl_mechanism not in known:
            found = f"is {self.sasl_mechanism!r}" if self.sasl_mechanism else "is not set"
            raise SettingsError(f"{_said('sasl_mechanism')} {found}; it is one of {', '.join(known)}")
        if self.sasl_mechanism == _OAUTH:
            self._check_needed("oauth_token_url", "oauth_client_id")
            self._check_secret("oauth_client_secret")
            self._check_unused("sasl_username", "sasl_password", "sasl_password_file")
        else:
            self._check_needed("sasl_username")
            self._check_secret("sasl_password")
            self._check_unused(*(each.name for each in fields(self) if each.name.startswith("oauth_")))

    def _check_group(self, prefix: str, *, wanted: bool, by: str) -> None:
        for each in fields(self):
            if not wanted and each.name.startswith(prefix) and getattr(self, each.name):
                raise SettingsError(
                    f"{_said(each.name)} is set, but {_said('security_protocol')} is {self.security_protocol}, which does not "
                    f"use it: set the protocol to {by}, or leave it out"
                )

    def _check_needed(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name):
                raise SettingsError(f"{_said('sasl_mechanism')} is {self.sasl_mechanism}, which needs {_said(name)}: set it")

    def _check_unused(self, *names: str) -> None:
        for name in names:
            if getattr(self, name):
                raise SettingsError(
                    f"{_said(name)} is set, but {_said('sasl_mechanism')} is {self.sasl_mechanism}, which does not use it: set "
                    "another mechanism, or leave it out"
                )

    def _check_secret(self, name: str) -> None:
        given = [each for each in (name, f"{name}_file") if getattr(self, each)]
        if not given:
            raise SettingsError(
                f"{_said('sasl_mechanism')} is {self.sasl_mechanism}, which needs {_said(name)}, or {_said(f'{name}_file')}: "
                "set one of them"
            )
        if len(given) == 2:
            raise SettingsError(f"{_said(name)} and {_said(f'{name}_file')} are both set: leave one out")

    def _check_pair(self, one: str, other: str) -> None:
        if bool(getattr(self, one)) != bool(getattr(self, other)):
            there, missing = (one, other) if getattr(self, one) else (other, one)
            raise SettingsError(f"{_said(there)} is set without {_said(missing)}: a client certificate needs both")

    def to_client(self) -> dict[str, str]:
        """Return the settings of librdkafka, reading the files.

        Raises:
            SettingsError: a file can't be read or does not hold what it should.
        """
        settings = {"bootstrap.servers": self.bootstrap, "security.protocol": self.security_protocol.lower()}
        if "SSL" in self.security_protocol:
            self._check_certificates()
            settings |= {
                "ssl.ca.location": self.ssl_ca_file,
                "ssl.certificate.location": self.ssl_certificate_file,
                "ssl.key.location": self.ssl_key_file,
                "ssl.key.password": self.ssl_key_password,
            }
        if self._logs_in:
            settings["sasl.mechanism"] = self.sasl_mechanism
            settings |= self._token_settings() if self.sasl_mechanism == _OAUTH else self._password_settings()
        return {name: value for name, value in settings.items() if value}

    def _password_settings(self) -> dict[str, str]:
        return {"sasl.username": self.sasl_username, "sasl.password": self._secret("sasl_password")}

    def _token_settings(self) -> dict[str, str]:
        if self.oauth_ca_file:
            self._check_authorities("oauth_ca_file")
        return {
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.token.endpoint.url": self.oauth_token_url,
            "sasl.oauthbearer.client.id": self.oauth_client_id,
            "sasl.oauthbearer.client.secret": self._secret("oauth_client_secret"),
            "sasl.oauthbearer.scope": self.oauth_scope,
            "https.ca.location": self.oauth_ca_file,
        }

    def _secret(self, name: str) -> str:
        path = getattr(self, f"{name}_file")
        if not path:
            return str(getattr(self, name))
        try:
            secret = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"  # never what the file holds
            raise SettingsError(f"{_said(f'{name}_file')}: {path} can't be read: {reason}") from None
        if not secret:
            raise SettingsError(f"{_said(f'{name}_file')}: {path} is empty: write the secret into it")
        return secret

    def _check_certificates(self) -> None:
        """Look at the files before the client does, which says less, and asks the terminal for a key's missing password."""
        if self.ssl_ca_file:
            self._check_authorities("ssl_ca_file")
        if self.ssl_certificate_file:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(
                    self.ssl_certificate_file, self.ssl_key_file, lambda: self.ssl_key_password
                )
            except (OSError, ValueError) as error:
                raise SettingsError(
                    f"{_said('ssl_certificate_file')} {self.ssl_certificate_file} and {_said('ssl_key_file')} "
                    f"{self.ssl_key_file}: {_reason(error)}; give a certificate and its own key as PEM, and "
                    f"{_said('ssl_key_password')} if the key is encrypted"
                ) from None

    def _check_authorities(self, name: str) -> None:
        path = getattr(self, name)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except OSError as error:  # an SSLError is one
            raise SettingsError(f"{_said(name)}: {path}: {_reason(error)}; give a readable file of certificates (PEM)") from None


def _said(name: str) -> str:
    return f"kafka_{name}"


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"not valid ({error.reason or error.strerror or error})".lower().replace("_", " ")
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
