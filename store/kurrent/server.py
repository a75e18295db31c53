"""The server: the protocol's services over one Postgres store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence, Set
from contextlib import asynccontextmanager
from typing import Any

import grpc

from ...schemas import OPAQUE, SettingsError
from ...schemas.registry_users import Users
from ..postgres import PostgresEventStore
from .access import Access
from .appends import Appends
from .calls import Method
from .gossip import FeaturesService, GossipService
from .login import Login
from .persistent import PersistentService
from .reading import Reader
from .rules import Rules
from .sessions import SessionsService
from .streams import StreamsService
from .tail import Tail

__all__ = ["KurrentServer"]

_MAX_MESSAGE_BYTES = 32 * 1024 * 1024


class KurrentServer:
    """Serves a Postgres store to programs written for EventStoreDB and KurrentDB.

    `max_append_bytes` bounds data plus metadata of one append. With `tls_cert` and `tls_key` (PEM), it speaks TLS. `advertise` is
    the host and port that clients are told when they ask for the cluster's members. With `users`, which needs TLS, only they may
    call, and streams' `$acl` holds; `admins` are those of them who may do everything.
    """

    def __init__(
        self,
        store: PostgresEventStore,
        *,
        max_append_bytes: int = 1_048_576,
        tls_cert: bytes = b"",
        tls_key: bytes = b"",
        advertise: tuple[str, int] | None = None,
        users: Users | None = None,
        admins: Set[str] = frozenset({"admin"}),
    ) -> None:
        self._store = store
        self._max_append_bytes = max_append_bytes
        self._tls = (tls_key, tls_cert) if tls_cert else None
        self._advertise = advertise
        self._users = users
        self._admins = admins
        if users is not None and not self._tls:
            raise SettingsError("passwords are not taken in the clear: give users together with a certificate and its key")

    @asynccontextmanager
    async def listening(self, host: str = "127.0.0.1", port: int = 2113) -> AsyncIterator[int]:
        """Serve while the block runs; yields the port, which is a free one if 0 was given.

        Raises:
            SettingsError: the address can't be had, or the tables are missing.
            Unavailable: Postgres is away.
        """
        await self._store.register([OPAQUE])
        rules = Rules()
        tail = Tail(self._store, rules)
        server = grpc.aio.server(
            interceptors=[Login(self._users)] if self._users is not None else [],
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
                ("grpc.http2.max_ping_strikes", 0),  # Node's client pings a call that waits every 10 s
            ],
        )
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self._tls:
                bound = server.add_secure_port(address, grpc.ssl_server_credentials([self._tls]))
            else:
                bound = server.add_insecure_port(address)
        except RuntimeError as error:
            raise SettingsError(f"{address} can't be listened on ({error}); choose another --port or --host") from error
        reader = Reader(self._store, rules)
        access = Access(rules, self._users, self._admins)
        appends = Appends(self._store, rules, max_append_bytes=self._max_append_bytes)
        services: Sequence[Any] = [
            StreamsService(reader, appends, tail, access),
            PersistentService(self._store, reader, tail, access),
            GossipService(*(self._advertise or (host, bound))),
            FeaturesService(),
            SessionsService(appends, access),
        ]
        async with tail.running():
            server.add_generic_rpc_handlers([_handler(each.name, each.methods) for each in services])
            await server.start()
            try:
                yield bound
            finally:
                await server.stop(grace=1.0)


def _handler(name: str, methods: dict[str, Method]) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(name, methods)
