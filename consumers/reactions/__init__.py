"""Reactions: effects of events outside a read model. Knows no relay."""

from .consumer import ReactionConsumer
from .context import Context
from .reaction import Callback, ProcessManager, Reaction, Reactions, by_stream, reaction_of
from .scheduler import Scheduler
from .webhook import Webhook

__all__ = [
    "Callback",
    "Context",
    "ProcessManager",
    "Reaction",
    "ReactionConsumer",
    "Reactions",
    "Scheduler",
    "Webhook",
    "by_stream",
    "reaction_of",
]
