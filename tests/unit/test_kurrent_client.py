"""The client of EventStoreDB's protocol: connection strings and envelopes, without a server."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from eventspine import SettingsError
from eventspine.store.kurrent import KurrentConnection
from eventspine.store.kurrent.connection import Address
from eventspine.store.kurrent.envelope import Envelope, Seen, envelope_of

CREATED = datetime(2026, 1, 1, tzinfo=UTC)
TIME = "2026-01-01T00:00:00.000000Z"


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("esdb://localhost", Address((("localhost", 2113),), discover=False, tls=True)),
        ("kdb://h:1?TLS=False", Address((("h", 1),), discover=False, tls=False)),
        ("kurrentdb+discover://h:1", Address((("h", 1),), discover=True, tls=True)),
        ("esdb://a:1,b?tls=true", Address((("a", 1), ("b", 2113)), discover=True, tls=True)),
        ("esdb://[::1]:5", Address((("::1", 5),), discover=False, tls=True)),
        ("esdb://u%40x:p%3A%2Fw@h", Address((("h", 2113),), discover=False, tls=True, user="u@x", password="p:/w")),
        ("esdb://h?tlsCaFile=/ca.pem&keepAliveInterval=5000&nodePreference=leader",
         Address((("h", 2113),), discover=False, tls=True, ca_file="/ca.pem")),
    ],
)  # fmt: skip
def test_connection_strings(uri: str, address: Address) -> None:
    assert Address.parse(uri) == address


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("postgresql://h/db", "begins with esdb"), ("localhost:2113", "begins with esdb"), ("esdb+srv://h", "begins with esdb"),
        ("esdb://", "no HOST:PORT"), ("esdb://h:port", "no HOST:PORT"), ("esdb://h:1,,i:2", "no HOST:PORT"),
        ("esdb://h?tls=maybe", "true or false"), ("esdb://h?tlsVerifyCert=false", "not possible"),
        ("esdb://h?secret=1", "secret"), ("esdb://[::1", "no URI"),
    ],
)  # fmt: skip
def test_connection_strings_that_are_none(uri: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        Address.parse(uri)


def test_a_fault_of_a_connection_string_does_not_tell_its_password() -> None:
    with pytest.raises(SettingsError) as caught:
        Address.parse("esdb://admin:hunter2@h:port")
    assert "hunter2" not in str(caught.value)


def test_files_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="tlsCaFile"):
        KurrentConnection(f"esdb://h?tlsCaFile={tmp_path / 'none.pem'}")
    with pytest.raises(SettingsError, match="needs its key"):
        KurrentConnection(f"esdb://h?userCertFile={tmp_path / 'none.pem'}")


@pytest.mark.parametrize(
    ("metadata", "envelope"),
    [
        (b"", Envelope({"timestamp": TIME}, (), None)),
        (b'{"a": 1, "$correlationId": "c", "$causationId": 5}',
         Envelope({"a": 1, "correlation_id": "c", "timestamp": TIME}, (), None)),
        (b"\xff", Envelope({"kurrent": {"metadata_base64": "/w=="}, "timestamp": TIME}, (), None)),
        (b"[1]", Envelope({"kurrent": {"metadata_base64": "WzFd"}, "timestamp": TIME}, (), None)),
        (b'{"timestamp": "2025-01-01T00:00:00Z", "$eventspine": {"schema_version": 3, "tags": ["t"]}}',
         Envelope({"timestamp": "2025-01-01T00:00:00Z"}, ("t",), 3)),
        (b'{"$eventspine": "{\\"schema_version\\":2,\\"metadata\\":{\\"n\\":5}}"}', Envelope({"timestamp": TIME, "n": 5}, (), 2)),
        (b'{"$eventspine": "no JSON"}', Envelope({"timestamp": TIME}, (), None)),
        (b'{"$eventspine": {"schema_version": "1", "tags": 5}}', Envelope({"timestamp": TIME}, (), None)),
    ],
)  # fmt: skip
def test_envelopes(metadata: bytes, envelope: Envelope) -> None:
    seen = Seen(UUID(int=1), "Order-1", 0, 1, "OrderPaid", "application/json", b"{}", metadata, CREATED)
    assert envelope_of(seen) == envelope
