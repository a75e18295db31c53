"""EventStoreDB's and KurrentDB's gRPC protocol: a server of it over our store, and an event store over any such server.

Needs the extra: pip install "eventspine[kurrent]".
"""

from .client import KurrentEventStore
from .connection import KurrentConnection
from .server import KurrentServer

__all__ = ["KurrentConnection", "KurrentEventStore", "KurrentServer"]
