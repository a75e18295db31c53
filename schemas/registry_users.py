"""Who may use the registry over HTTP: names, roles and hashes of passwords, in a file.

Source: https://www.rfc-editor.org/rfc/rfc7617 (HTTP basic), https://www.rfc-editor.org/rfc/rfc7914 (scrypt)
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import re
import secrets
from pathlib import Path
from typing import NamedTuple

from .errors import SettingsError

__all__ = ["Users", "hash_password"]

_LINE = re.compile(
    r"(?P<name>[^:\s]+):(?P<role>read|write):scrypt\$(?P<n>\d{1,6})\$(?P<r>\d{1,2})\$(?P<p>\d{1,2})"
    r"\$(?P<salt>[A-Za-z0-9+/=]+)\$(?P<key>[A-Za-z0-9+/=]+)"
)
_N, _R, _P = 2**14, 8, 1
_MOST_MEMORY_BYTES = 128 * 1024 * 1024


class _User(NamedTuple):
    role: str
    n: int
    r: int
    p: int
    salt: bytes
    key: bytes


class Users:
    """Users and their roles, `read` or `write`. A password that was right is remembered as a keyed hash, in this process only.

    Checking a password takes 16 MB and some 50 ms on purpose, for a name that is not there as well; two are checked at a time.
    """

    def __init__(self, users: dict[str, _User]) -> None:
        self._users = users
        self._nobody = _User("", _N, _R, _P, secrets.token_bytes(16), secrets.token_bytes(32))
        self._secret = secrets.token_bytes(32)
        self._right: dict[bytes, tuple[str, str]] = {}
        self._turns = asyncio.Semaphore(2)

    @classmethod
    def from_file(cls, file: Path) -> Users:
        """Read a file of lines as `hash_password` makes them; empty lines and `#` comments are skipped.

        Raises:
            SettingsError: the file can't be read, a line is not in that form, or there is none.
        """
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"the users' file {file} can't be read: {error}") from error
        users: dict[str, _User] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            match = _LINE.fullmatch(line.strip())
            if match is None or match["name"] in users:
                raise SettingsError(f"{file}, line {number}: make such lines with `eventspine registry password NAME`")
            try:
                salt, key = base64.b64decode(match["salt"]), base64.b64decode(match["key"])
                user = _User(match["role"], int(match["n"]), int(match["r"]), int(match["p"]), salt, key)
                _scrypt(user, "")
            except ValueError as error:
                raise SettingsError(f"{file}, line {number}: {error}") from error
            users[match["name"]] = user
        if not users:
            raise SettingsError(f"the users' file {file} names nobody; add a line with `eventspine registry password NAME`")
        return cls(users)

    async def role_of(self, authorization: str) -> str:
        """Return the role of who sent an `Authorization` header; "" if the name or the password is wrong."""
        return (await self.who_sent(authorization))[1]

    async def who_sent(self, authorization: str) -> tuple[str, str]:
        """Return name and role of who sent an `Authorization` header; "" and "" if the name or the password is wrong."""
        seal = hmac.digest(self._secret, authorization.encode(errors="surrogateescape"), "sha256")
        if seal in self._right:
            return self._right[seal]
        scheme, _, encoded = authorization.partition(" ")
        try:
            name, colon, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return "", ""
        if scheme.lower() != "basic" or not colon or len(password) > 1000:
            return "", ""
        user = self._users.get(name, self._nobody)
        async with self._turns:
            key = await asyncio.to_thread(_scrypt, user, password)
        if not hmac.compare_digest(key, user.key) or not user.role:
            return "", ""
        self._right[seal] = name, user.role  # grows no further than there are ways to send the right passwords
        if len(self._right) > 1000:
            self._right.clear()
        return name, user.role


def hash_password(name: str, password: str, *, read_only: bool = False) -> str:
    """Return the line of a user for the users' file.

    Raises:
        SettingsError: the name holds a colon or white space, or the password is empty or longer than 1,000 characters.
    """
    if not name or ":" in name or any(map(str.isspace, name)):
        raise SettingsError(f"{name!r} is no user's name: it is not empty, and has no colon and no white space")
    if not 1 <= len(password) <= 1000:
        raise SettingsError("a password has 1 to 1,000 characters")
    user = _User("read" if read_only else "write", _N, _R, _P, secrets.token_bytes(16), b"")
    salt, key = (base64.b64encode(each).decode() for each in (user.salt, _scrypt(user, password)))
    return f"{name}:{user.role}:scrypt${user.n}${user.r}${user.p}${salt}${key}"


def _scrypt(user: _User, password: str) -> bytes:
    return hashlib.scrypt(
        password.encode(), salt=user.salt, n=user.n, r=user.r, p=user.p, maxmem=_MOST_MEMORY_BYTES, dklen=len(user.key) or 32
    )
