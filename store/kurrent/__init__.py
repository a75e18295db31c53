"""The EventStoreDB/KurrentDB door: programs written for that server work on this store, over its gRPC protocol.

Needs the extra: pip install "eventspine[kurrent]".
"""

from .server import KurrentServer

__all__ = ["KurrentServer"]
