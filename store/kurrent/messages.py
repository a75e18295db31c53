"""The protocol's messages, as classes made from the descriptor set that the package ships.

They live in a pool of their own: the client libraries register theirs in protobuf's default pool, and all can share one process.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

__all__ = ["message_class"]

_pool = DescriptorPool()
for _file in FileDescriptorSet.FromString((files("eventspine.store.kurrent") / "proto" / "kurrent.binpb").read_bytes()).file:
    _pool.AddSerializedFile(_file.SerializeToString())


def message_class(name: str) -> Any:
    """Return the class of a message of proto/*.proto."""
    return GetMessageClass(_pool.FindMessageTypeByName(f"eventspine.kurrent.{name}"))
