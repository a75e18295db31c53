"""Which door serves a persistent subscription: one at a time, by a lease in Postgres, renewed while there are consumers."""

from __future__ import annotations

import asyncio
from typing import NamedTuple
from uuid import uuid4

from ...schemas.postgres import load_sql, translated
from ..postgres import PostgresEventStore

__all__ = ["RENEW_S", "Claim", "Leases"]

_SQL = "eventspine.store.kurrent"
_CLAIM = load_sql(_SQL, "sql/claim_group")
_RELEASE = load_sql(_SQL, "sql/release_group")
_LEASE_S = 10.0
RENEW_S = 2.0


class Claim(NamedTuple):
    """A lease that this door holds. `claims` is the same as before while no other door held it; `settings` are JSON."""

    claims: int
    place: int
    settings: str


class Leases:
    """The leases of one door. `turn` is held by who claims or releases, so that a group is not released under a new consumer."""

    def __init__(self, store: PostgresEventStore, address: str) -> None:
        self._store = store
        self._door = uuid4()
        self._address = address
        self.turn = asyncio.Lock()

    async def claim(self, source: str, name: str) -> Claim | None:
        """Take or renew a lease; None if another door holds it, or there is no such persistent subscription.

        Raises:
            Unavailable: Postgres is away.
        """
        async with translated():
            row = await self._store.pool.fetchrow(_CLAIM, source, name, self._door, self._address, _LEASE_S)
        return None if row is None else Claim(*row)

    async def release(self, source: str, name: str) -> None:
        """Give a lease back, so that another door need not wait until it runs out.

        Raises:
            Unavailable: Postgres is away.
        """
        async with translated():
            await self._store.pool.execute(_RELEASE, source, name, self._door)
