"""A connection to a server of EventStoreDB's or KurrentDB's: its address as their clients write it, its calls, its errors."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import grpc

from ...schemas import EventspineError, InvalidEvent, SettingsError, Unavailable
from .messages import message_class

__all__ = ["Address", "KurrentConnection", "error_of"]

_Empty = message_class("Empty")
_ClusterInfo = message_class("ClusterInfo")

_STREAMS = "/event_store.client.streams.Streams/"
_GOSSIP = "/event_store.client.gossip.Gossip/Read"
_SCHEMES = ("esdb", "kdb", "kurrent", "kurrentdb")
_LEADER: Final = 8
_MAX_MESSAGE_BYTES = 32 * 1024 * 1024
# What clients understand and this one has no use for: it talks to the leader alone, and has limits of time of its own.
_UNUSED = {
    "connectionname", "maxdiscoverattempts", "discoveryinterval", "gossiptimeout", "nodepreference", "defaultdeadline",
    "keepaliveinterval", "keepalivetimeout", "throwonappendfailure",
}  # fmt: skip
_UNAVAILABLE = {
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED,
}  # fmt: skip


@dataclass(frozen=True)
class Address:
    """What a connection string says: `esdb://user:password@host:port,host:port?tls=true&tlsCaFile=ca.pem`."""

    hosts: tuple[tuple[str, int], ...]
    discover: bool
    tls: bool
    user: str = ""
    password: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    @classmethod
    def parse(cls, uri: str) -> Address:
        """Read a connection string. `+discover` behind the scheme, or several hosts: ask them who leads.

        Raises:
            SettingsError: it is none, or asks for what is not there. It may hold a password: it is not repeated.
        """
        try:
            parts = urlsplit(uri)
        except ValueError as error:
            raise SettingsError(f"the connection string is no URI: {error}") from None
        scheme, _, discover = parts.scheme.partition("+")
        if scheme not in _SCHEMES or discover not in ("", "discover"):
            raise SettingsError(f"a connection string begins with esdb:// or kdb://, not with {parts.scheme!r}")
        login, _, places = parts.netloc.rpartition("@")
        user, _, password = login.partition(":")
        hosts = tuple(_host(place) for place in places.split(","))
        options = {name.lower(): value for name, value in parse_qsl(parts.query, keep_blank_values=True)}
        known = {"tls", "tlscafile", "tlsverifycert", "usercertfile", "userkeyfile"} | _UNUSED
        if options.keys() - known:
            raise SettingsError(f"the connection string holds options that nobody knows: {sorted(options.keys() - known)}")
        tls = _flag("tls", options.get("tls", "true"))
        if not _flag("tlsVerifyCert", options.get("tlsverifycert", "true")):
            raise SettingsError("tlsVerifyCert=false is not possible here: name the certificate's authority with tlsCaFile")
        return cls(
            hosts=hosts,
            discover=bool(discover) or len(hosts) > 1,
            tls=tls,
            user=unquote(user),
            password=unquote(password),
            ca_file=options.get("tlscafile", ""),
            cert_file=options.get("usercertfile", ""),
            key_file=options.get("userkeyfile", ""),
        )


class KurrentConnection:
    """An open connection; `async with KurrentConnection("esdb://localhost:2113?tls=false") as connection`.

    A user's name and password are sent over TLS only. `timeout_s` bounds one append, and the search for the leader.
    """

    def __init__(self, uri: str, *, timeout_s: float = 10.0) -> None:
        self.address = Address.parse(uri)
        self.timeout_s = timeout_s
        self._credentials = _credentials(self.address) if self.address.tls else None
        self._metadata: tuple[tuple[str, str], ...] = (("requires-leader", "true"),)
        if self.address.user and self.address.tls:
            login = base64.b64encode(f"{self.address.user}:{self.address.password}".encode()).decode()
            self._metadata += (("authorization", f"Basic {login}"),)
        self._channel: Any = None

    async def __aenter__(self) -> KurrentConnection:
        """Raises:
        Unavailable: no member of the cluster says who leads.
        """
        place = await self._leader() if self.address.discover else self.address.hosts[0]
        self._channel = self._open(place)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._channel.close()

    async def read(self, request: Any) -> AsyncIterator[bytes]:
        """Yield the answers to a ReadRequest; no more are taken from the server than transport holds, about 64 KB.

        Raises: what `error_of` returns.
        """
        call = self.open_read(request)
        try:
            async for frame in call:
                yield frame
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
        finally:
            call.cancel()

    def open_read(self, request: Any) -> Any:
        """Return the call of a ReadRequest; its reader translates its errors."""
        return self._channel.unary_stream(_STREAMS + "Read")(request.SerializeToString(), metadata=self._metadata)

    def open_batches(self) -> Any:
        """Return a call of BatchAppend; its reader translates its errors."""
        return self._channel.stream_stream(_STREAMS + "BatchAppend")(metadata=self._metadata)

    async def append_session(self, parts: list[bytes]) -> bytes:
        """Append to several streams; see proto/v2.proto.

        Raises:
            grpc.aio.AioRpcError: its details say what is wrong with which stream.
        """
        method = self._channel.stream_unary("/kurrentdb.protocol.v2.streams.StreamsService/AppendSession")
        return bytes(await method(iter(parts), metadata=self._metadata, timeout=self.timeout_s))

    def _open(self, place: tuple[str, int]) -> Any:
        host, port = place
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", 10_000),  # a server that vanished without a word is noticed
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000),
        ]
        if self._credentials is None:
            return grpc.aio.insecure_channel(target, options=options)
        return grpc.aio.secure_channel(target, self._credentials, options=options)

    async def _leader(self) -> tuple[str, int]:
        """Return where the cluster's leader listens, as the first member says that answers."""
        said: Exception = Unavailable("no member of the cluster leads")
        for place in self.address.hosts:
            async with self._open(place) as channel:
                try:
                    content = await channel.unary_unary(_GOSSIP)(_Empty().SerializeToString(), timeout=self.timeout_s)
                except grpc.aio.AioRpcError as error:
                    said = error_of(error)
                    continue
            for member in _ClusterInfo.FromString(content).members:
                if member.state == _LEADER and member.is_alive:
                    return member.http_end_point.address, member.http_end_point.port
        raise said


def error_of(error: Any) -> EventspineError:
    """Return what the failure of a call means."""
    code, details = error.code(), error.details() or ""
    if "Ssl handshake failed" in details or "SSL_ERROR" in details:  # gRPC has no code for it
        return SettingsError(f"the server's certificate is not accepted, or it does not speak TLS: {details}; see tlsCaFile")
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return SettingsError(f"the server refuses this user: {details}")
    trailers = dict(error.trailing_metadata() or ())
    if "leader-endpoint-host" in trailers:
        leader = f"{trailers['leader-endpoint-host']}:{trailers.get('leader-endpoint-port', '')}"
        return SettingsError(f"this member does not lead, {leader} does: connect there, or with esdb+discover://")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return SettingsError(f"the server does not have this call; it is too old ({details})")
    if code in _UNAVAILABLE:
        return Unavailable(f"the server did not answer ({code.name}: {details})")
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidEvent(details)
    return EventspineError(f"the server failed: {code.name}: {details}")


def _host(place: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{place}")
        if parts.hostname:
            return parts.hostname, parts.port or 2113
    except ValueError:
        pass
    raise SettingsError(f"{place!r} in the connection string is no HOST:PORT")


def _flag(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise SettingsError(f"{name} in the connection string is true or false, not {value!r}")
    return value.lower() == "true"


def _credentials(address: Address) -> Any:
    if bool(address.cert_file) != bool(address.key_file):
        raise SettingsError("a user's certificate needs its key: give userCertFile and userKeyFile")
    files = [_content(name, path) for name, path in (("tlsCaFile", address.ca_file), ("userKeyFile", address.key_file))]
    return grpc.ssl_channel_credentials(*files, _content("userCertFile", address.cert_file))


def _content(name: str, path: str) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SettingsError(f"{name} in the connection string: {path}: {error.strerror}") from error
