"""A real Kafka broker that wants to know who speaks (TLS, SCRAM, OAuth; rights for each user), and a token endpoint."""

from __future__ import annotations

import base64
import hmac
import json
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from confluent_kafka.admin._scram import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from eventspine.local.kafka import KafkaService
from eventspine.local.service import free_port
from tests.certificates import Authority

__all__ = ["REAUTHENTICATED_EVERY_S", "SecureKafka", "TokenEndpoint", "grant"]

REAUTHENTICATED_EVERY_S = 2
"""How long a login by password lasts: then the client must show again that it knows it. One by token lasts as the token does."""

# The first listener and the controller's have no login: the test's oracle and its administrator use them, as User:ANONYMOUS.
_PROPERTIES = """\
listeners=PLAINTEXT://127.0.0.1:{port},MUTUAL://127.0.0.1:{mutual},SCRAM://127.0.0.1:{scram},OAUTH://127.0.0.1:{oauth},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},MUTUAL://127.0.0.1:{mutual},SCRAM://127.0.0.1:{scram},OAUTH://127.0.0.1:{oauth}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,MUTUAL:SSL,SCRAM:SASL_SSL,OAUTH:SASL_SSL
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
ssl.truststore.type=PEM
ssl.truststore.location={truststore}
listener.name.mutual.ssl.client.auth=required
listener.name.scram.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.scram.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.scram.scram-sha-512.connections.max.reauth.ms={reauthenticated_ms}
listener.name.oauth.sasl.enabled.mechanisms=OAUTHBEARER
listener.name.oauth.oauthbearer.sasl.jaas.config=\
org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;
listener.name.oauth.oauthbearer.sasl.server.callback.handler.class=\
org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler
listener.name.oauth.oauthbearer.connections.max.reauth.ms=60000
listener.name.oauth.sasl.oauthbearer.jwks.endpoint.url={jwks_url}
listener.name.oauth.sasl.oauthbearer.expected.audience=kafka
listener.name.oauth.sasl.oauthbearer.expected.issuer=eventspine-tests
"""


class SecureKafka(KafkaService):
    """Kafka with a listener for each way to log in: `mutual`, `scram` and `oauth` are their addresses."""

    def __init__(self, folder: Path, authority: Authority, jwks_url: str) -> None:
        super().__init__(folder)
        self._ports = {name: free_port() for name in ("mutual", "scram", "oauth")}
        self._authority = authority
        self._keystore = authority.sign("broker").both
        self._jwks_url = jwks_url

    def address(self, listener: str) -> str:
        return f"127.0.0.1:{self._ports[listener]}"

    def set_password(self, user: str, password: str) -> None:
        """Make a user of the SCRAM listener, or give it another password."""
        how = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        change = UserScramCredentialUpsertion(user, how, password.encode())
        admin = self._admin()  # while it is held, the answers come
        for done in admin.alter_user_scram_credentials([change]).values():
            done.result(timeout=20)

    def grant(self, bindings: Iterable[AclBinding]) -> None:
        admin = self._admin()
        for done in admin.create_acls(list(bindings)).values():
            done.result(timeout=20)

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.endpoint})

    def _configure(self, data: Path, port: int, controller_port: int) -> None:
        super()._configure(data, port, controller_port)
        facts = {"port": port, "controller_port": controller_port, "jwks_url": self._jwks_url, **self._ports}
        files = {"keystore": self._keystore, "truststore": self._authority.certificate}
        ours = _PROPERTIES.format(**facts, **files, reauthenticated_ms=REAUTHENTICATED_EVERY_S * 1000)
        with self._properties.open("a") as properties:  # what stands last counts
            properties.write(ours)

    def _java(self) -> list[str]:
        program, *rest = super()._java()
        allowed = f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={self._jwks_url}"
        return [program, allowed, *rest]


def grant(user: str, kind: str, name: str, *operations: str, prefixed: bool = False) -> list[AclBinding]:
    """Return the rights of a user to do the operations with a resource: `topic`, `group`, `transactional_id` or `broker`."""
    how = ResourcePatternType.PREFIXED if prefixed else ResourcePatternType.LITERAL
    return [
        AclBinding(
            ResourceType[kind.upper()], name, how, f"User:{user}", "*", AclOperation[each.upper()], AclPermissionType.ALLOW
        )
        for each in operations
    ]


class TokenEndpoint:
    """An OAuth 2 authorization server on loopback: client credentials for a token that it signs, and its key as JWKS.

    Clients come by TLS; the broker, which would need a store of its own for the authority, fetches the key without. A token lasts
    `lifetime_s`. `secret` is what the client must know. `given` counts tokens.

    Source: https://www.rfc-editor.org/rfc/rfc6749#section-4.4 and https://www.rfc-editor.org/rfc/rfc7517
    """

    def __init__(self, client_id: str, secret: str, authority: Authority, *, lifetime_s: int) -> None:
        self.secret = secret
        self.given = 0
        self._client_id = client_id
        self._lifetime_s = lifetime_s
        self._key = rsa.generate_private_key(65537, 2048)
        self._for_brokers, self._for_clients = (ThreadingHTTPServer(("127.0.0.1", 0), self._handler()) for _ in range(2))
        signed = authority.sign("tokens")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(signed.certificate, signed.key)
        self._for_clients.socket = context.wrap_socket(self._for_clients.socket, server_side=True)

    @property
    def token_url(self) -> str:
        return f"https://127.0.0.1:{self._for_clients.server_port}/token"

    @property
    def jwks_url(self) -> str:
        return f"http://127.0.0.1:{self._for_brokers.server_port}/jwks"

    @contextmanager
    def serving(self) -> Iterator[None]:
        servers = (self._for_brokers, self._for_clients)
        threads = [threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}) for server in servers]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for server in servers:
                server.shutdown()
            for thread in threads:
                thread.join(10)
            for server in servers:
                server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200, endpoint._jwks())

            def do_POST(self) -> None:
                sent = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                wanted = base64.b64encode(f"{endpoint._client_id}:{endpoint.secret}".encode()).decode()
                if not hmac.compare_digest(self.headers.get("Authorization", ""), f"Basic {wanted}"):
                    self._answer(401, {"error": "invalid_client"})
                elif sent.get("grant_type") != ["client_credentials"] or sent.get("scope") != ["events"]:
                    self._answer(400, {"error": "invalid_request"})
                else:
                    endpoint.given += 1
                    self._answer(200, {"access_token": endpoint._token(), "token_type": "Bearer", "scope": "events"})

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                encoded = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(encoded)))
                self.end_headers()
                self.wfile.write(encoded)

        return Handler

    def _jwks(self) -> dict[str, Any]:
        numbers = self._key.public_key().public_numbers()
        key = {"kty": "RSA", "kid": "tests", "alg": "RS256", "use": "sig", "n": _encoded(numbers.n), "e": _encoded(numbers.e)}
        return {"keys": [key]}

    def _token(self) -> str:
        now = int(time.time())
        claims = {
            "sub": self._client_id,
            "iss": "eventspine-tests",
            "aud": "kafka",
            "scope": "events",
            "iat": now,
            "exp": now + self._lifetime_s,
        }
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in ({"alg": "RS256", "kid": "tests"}, claims))
        return f"{signed}.{_base64url(self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def _encoded(number: int) -> str:
    return _base64url(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
