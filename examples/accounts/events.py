"""The event types, in all their versions, and the steps between them."""

from __future__ import annotations

from decimal import Decimal
from importlib.resources import files
from typing import Any

from eventspine import load_event_types, upcaster

__all__ = ["EVENT_TYPES", "UPCASTERS"]

EVENT_TYPES = load_event_types(files(__package__) / "schemas")


@upcaster("MoneyDeposited", from_version=2)
def euros_to_cents(data: dict[str, Any]) -> dict[str, Any]:
    """A double's shortest decimal is what was typed in."""
    cents = round(Decimal(repr(data.pop("amount"))) * 100)
    return {"amount_cents": cents, **data}


@upcaster("MoneyDeposited", from_version=4)
def cents_to_decimal(data: dict[str, Any]) -> dict[str, Any]:
    amount = Decimal(data.pop("amount_cents")).scaleb(-2)
    return {"amount": amount, "currency": "EUR", **data}


@cents_to_decimal.downcaster
def decimal_to_cents(data: dict[str, Any]) -> dict[str, Any]:
    if data.pop("currency") != "EUR":
        raise ValueError("version 4 knows euros only")
    return {"amount_cents": int(data.pop("amount").scaleb(2)), **data}


UPCASTERS = [euros_to_cents, cents_to_decimal]
