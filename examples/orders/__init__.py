"""The small example: an order is placed, paid and shipped through a command handler; a projection sums it up."""

from .projections import OrderSummary

__all__ = ["OrderSummary"]
