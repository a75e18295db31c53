"""Real servers without Docker: PostgreSQL and Kafka from package registries. Needs the extra `local`."""

from ..schemas import LocalStackError
from .stack import Endpoints, LocalStack

__all__ = ["Endpoints", "LocalStack", "LocalStackError"]
