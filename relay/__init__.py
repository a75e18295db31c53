"""The relay: publishes the log to Kafka, in order, exactly once. Knows no consumer."""

from .relay import Relay

__all__ = ["Relay"]
