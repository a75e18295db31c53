"""The settings of aiokafka's clients: the same access as librdkafka's get, in its terms."""

from __future__ import annotations

import asyncio
import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from typing import Any

from aiokafka.abc import AbstractTokenProvider

from .errors import Unavailable
from .kafka_access import KafkaAccess

__all__ = ["asyncio_settings"]

_TOKEN_TIMEOUT_S = 10.0


def asyncio_settings(kafka: str | KafkaAccess) -> dict[str, Any]:
    """Return how aiokafka reaches Kafka and logs in there, reading the files. Secrets are among it: never log it.

    Raises:
        SettingsError: a file can't be read or does not hold what it should.
    """
    if isinstance(kafka, str):
        return {"bootstrap_servers": kafka}
    client = kafka.to_client()  # reads and checks the files
    settings: dict[str, Any] = {"bootstrap_servers": kafka.bootstrap, "security_protocol": kafka.security_protocol}
    if "SSL" in kafka.security_protocol:
        settings["ssl_context"] = context = ssl.create_default_context(cafile=kafka.ssl_ca_file or None)
        if kafka.ssl_certificate_file:
            context.load_cert_chain(kafka.ssl_certificate_file, kafka.ssl_key_file, lambda: kafka.ssl_key_password)
    if "sasl.mechanism" in client:
        settings["sasl_mechanism"] = client["sasl.mechanism"]
        if "sasl.username" in client:
            settings["sasl_plain_username"] = client["sasl.username"]
            settings["sasl_plain_password"] = client["sasl.password"]
        else:
            settings["sasl_oauth_token_provider"] = _ClientCredentials(client)
    return settings


class _ClientCredentials(AbstractTokenProvider):  # type: ignore[misc]
    """Asks the token endpoint for a token at each new connection.

    Source: https://www.rfc-editor.org/rfc/rfc6749#section-4.4 (client credentials, HTTP basic authentication)
    """

    def __init__(self, client: dict[str, str]) -> None:
        self._url = client["sasl.oauthbearer.token.endpoint.url"]
        secret = f"{client['sasl.oauthbearer.client.id']}:{client['sasl.oauthbearer.client.secret']}"
        self._authorization = "Basic " + b64encode(secret.encode()).decode()
        scope = client.get("sasl.oauthbearer.scope", "")
        self._form = {"grant_type": "client_credentials"} | ({"scope": scope} if scope else {})
        self._context = ssl.create_default_context(cafile=client.get("https.ca.location"))

    async def token(self) -> str:
        return await asyncio.to_thread(self._ask)

    def _ask(self) -> str:
        headers = {"Authorization": self._authorization, "Accept": "application/json"}
        request = urllib.request.Request(self._url, urllib.parse.urlencode(self._form).encode(), headers)  # noqa: S310 - a setting
        try:
            with urllib.request.urlopen(request, timeout=_TOKEN_TIMEOUT_S, context=self._context) as answer:  # noqa: S310
                return str(json.load(answer)["access_token"])
        except (OSError, ValueError, KeyError) as error:
            raise Unavailable(f"the token endpoint gave no token: {type(error).__name__}") from error
