"""Streams' names: EventStoreDB takes any text, the store `{Type}-{id}`. Whatever is not of that form goes behind `kurrent-`.

The relay makes a topic for each type. So a bare UUID, which may look like such a name, goes there too.
"""

from __future__ import annotations

import re

from .faults import bad_request

__all__ = ["category_query", "stream_id_of", "stream_name_of", "type_of"]

_PREFIX = "kurrent-"
_UUID = r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"  # whose first part is no category, though it may look like one
_NATIVE = re.compile(rf"(?!{_UUID}\Z)[A-Za-z_][A-Za-z0-9_.]*-[^\x00-\x1f\x7f]+")
_MAX_CHARS = 400


def stream_id_of(name: str) -> str:
    """Return the id under which the store keeps a stream. Each name has its own.

    Raises:
        Fault: the name is empty, too long, or holds control characters.
    """
    stream_id = name if _NATIVE.fullmatch(name) and not name.startswith(_PREFIX) else _PREFIX + name
    if not name or len(stream_id) > _MAX_CHARS or (not name.isprintable() and any(c < " " or c == "\x7f" for c in name)):
        limit = _MAX_CHARS - len(_PREFIX)
        raise bad_request(f"a stream's name has 1 to {limit} characters, and no control characters among them; not {name[:80]!r}")
    return stream_id


def stream_name_of(stream_id: str) -> str:
    """Return the name that clients know."""
    return stream_id.removeprefix(_PREFIX)


def type_of(stream_id: str) -> str:
    return stream_id.partition("-")[0]


def category_query(category: str) -> tuple[str, str]:
    """Return the stream type in which a category of EventStoreDB's is kept, and with what the ids of its streams begin."""
    stream_id = stream_id_of(f"{category}-?")
    stream_type = type_of(stream_id)
    return stream_type, stream_id.removesuffix("?")
