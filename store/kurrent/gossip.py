"""event_store.client.gossip.Gossip and event_store.client.server_features.ServerFeatures: a cluster of one, and its calls."""

from __future__ import annotations

import time
from uuid import uuid4

from .calls import Call, Method, unary
from .messages import message_class

__all__ = ["FeaturesService", "GossipService"]

_ClusterInfo = message_class("ClusterInfo")
_SupportedMethods = message_class("SupportedMethods")

_LEADER = 8
_VERSION = "25.0.0"  # of KurrentDB, whose behaviour is followed; clients choose by it what they call
_STREAMS = "event_store.client.streams.streams"
_PERSISTENT = "event_store.client.persistent_subscriptions.persistentsubscriptions"
_METHODS = (
    (_STREAMS, "read", ("position", "events")),
    (_STREAMS, "append", ()),
    (_STREAMS, "batchappend", ("deadline_duration",)),
    (_STREAMS, "delete", ()),
    (_STREAMS, "tombstone", ()),
    (_PERSISTENT, "create", ("stream", "all")),
    (_PERSISTENT, "update", ("stream", "all")),
    (_PERSISTENT, "delete", ("stream", "all")),
    (_PERSISTENT, "read", ("stream", "all")),
    (_PERSISTENT, "getinfo", ("stream", "all")),
    (_PERSISTENT, "replayparked", ("stream", "all")),
    (_PERSISTENT, "list", ("stream", "all")),
    (_PERSISTENT, "restartsubsystem", ()),
    ("kurrentdb.protocol.v2.streams.streamsservice", "appendsession", ()),
    ("kurrentdb.protocol.v2.streams.streamsservice", "appendrecords", ()),
    ("event_store.client.gossip.gossip", "read", ()),
    ("event_store.client.server_features.serverfeatures", "getsupportedmethods", ()),
)


class GossipService:
    """Says that this server is its cluster's one member, and leads it."""

    name = "event_store.client.gossip.Gossip"

    def __init__(self, host: str, port: int) -> None:
        self._end_point = {"address": host, "port": port}
        self._instance_id = str(uuid4())

    @property
    def methods(self) -> dict[str, Method]:
        return {"Read": unary(self.read)}

    async def read(self, content: bytes, call: Call) -> bytes:
        member = {
            "instance_id": {"string": self._instance_id},
            "time_stamp": time.time_ns() // 100,
            "state": _LEADER,
            "is_alive": True,
            "http_end_point": self._end_point,
        }
        return bytes(_ClusterInfo(members=[member]).SerializeToString())


class FeaturesService:
    """Says which calls are answered."""

    name = "event_store.client.server_features.ServerFeatures"

    @property
    def methods(self) -> dict[str, Method]:
        return {"GetSupportedMethods": unary(self.supported)}

    async def supported(self, content: bytes, call: Call) -> bytes:
        methods = [
            {"service_name": service, "method_name": method, "features": features} for service, method, features in _METHODS
        ]
        return bytes(_SupportedMethods(methods=methods, event_store_server_version=_VERSION).SerializeToString())
