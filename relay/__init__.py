"""The relay: publishes the log to Kafka, in order, exactly once. Knows no consumer."""

from .outbox import OutboxRelay
from .relay import Relay
from .routing import Routing

__all__ = ["OutboxRelay", "Relay", "Routing"]
