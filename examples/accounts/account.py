"""The aggregate and the read model: both know today's shape only."""

from __future__ import annotations

from decimal import Decimal

from eventspine import Aggregate, Event, Projection, Table, TableWriter, on

__all__ = ["Account", "Balances"]


class Account(Aggregate):
    balance: Decimal = Decimal(0)
    deposits: int = 0

    def deposit(self, amount: Decimal, currency: str = "EUR") -> None:
        if amount <= 0:
            raise ValueError("a deposit is more than nothing")
        self.record("MoneyDeposited", {"amount": amount, "currency": currency})

    @on("MoneyDeposited")
    def _deposited(self, event: Event) -> None:
        self.balance += event.data["amount"]
        self.deposits += 1


class Balances(Projection):
    categories = ("Account",)
    table = Table("account_balances", columns={"account": "text", "balance": "numeric", "deposits": "bigint"}, key="account")

    @on("MoneyDeposited")
    def deposited(self, event: Event, balances: TableWriter) -> None:
        balances.increment(account=event.stream_id, balance=event.data["amount"], deposits=1)
