"""What a user may do with which stream: by `$acl` in its metadata, by the defaults in `$settings`, or by what holds without them.

Source: https://docs.kurrent.io/server/v25.1/security/user-authorization.html
"""

from __future__ import annotations

from collections.abc import Set

from grpc import StatusCode

from ...schemas.registry_users import Users
from .calls import Call
from .faults import Fault
from .rules import Rules

__all__ = ["Access", "Denied"]

_ADMINS, _ALL = "$admins", "$all"
_OF_METADATA = {"$r": "$mr", "$w": "$mw", "$d": "$mw"}


class Denied(Fault):
    """The user has not the right that the call needs."""

    def __init__(self, text: str) -> None:
        super().__init__(StatusCode.PERMISSION_DENIED, f"Access Denied: {text}", (("exception", "access-denied"),))


class Access:
    """Checks rights where users log in; where nobody does, everybody may everything. `admins` are the members of `$admins`."""

    def __init__(self, rules: Rules, users: Users | None, admins: Set[str]) -> None:
        self._rules = rules
        self._users = users
        self._admins = admins

    async def check(self, call: Call, name: str, right: str) -> None:
        """Let pass who may read (`$r`), write to (`$w`) or delete (`$d`) a stream, or the log, `$all`.

        What is done with `$$name` needs the right to the metadata of `name`.

        Raises:
            Denied: the user may not.
        """
        if self._users is None:
            return
        user = await self._user(call)
        if user in self._admins:
            return
        if name.startswith("$$"):
            name, right = name.removeprefix("$$"), _OF_METADATA[right]
        named = self._rules.named_in(name, right)
        if named is None:
            named = (_ADMINS,) if name.startswith("$") else (_ALL,)
        if _ALL not in named and (user not in named or user.startswith("$")):
            raise Denied(f"{user!r} has no right {right} on stream {name!r}")

    async def check_admin(self, call: Call) -> None:
        """Let pass the members of `$admins`.

        Raises:
            Denied: the user is none.
        """
        if self._users is not None and (user := await self._user(call)) not in self._admins:
            raise Denied(f"{user!r} is no member of {_ADMINS}")

    async def _user(self, call: Call) -> str:
        assert self._users is not None
        sent = next((value for key, value in call.invocation_metadata() or () if key == "authorization"), "")
        return (await self._users.who_sent(str(sent)))[0]
