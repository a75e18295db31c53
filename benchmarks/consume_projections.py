"""The read models of the consumers' benchmark, as users write them."""

from __future__ import annotations

from benchmarks.consume_events import CATEGORY
from eventspine import Event, Projection, Table, TableWriter, on


class Accounts(Projection):
    """A row for each account: its last charge."""

    categories = (CATEGORY,)
    table = Table("accounts", columns={"account": "text", "number": "bigint", "cents": "bigint"}, key="account")

    @on("Charged")
    def charged(self, event: Event, accounts: TableWriter) -> None:
        accounts.upsert(account=event.data["account"], number=event.data["number"], cents=event.data["cents"])


class Charges(Projection):
    """A new row for every event."""

    categories = (CATEGORY,)
    table = Table("charges", columns={"charge": "text", "account": "text", "number": "bigint", "cents": "bigint"}, key="charge")

    @on("Charged")
    def charged(self, event: Event, charges: TableWriter) -> None:
        data = event.data
        charges.insert(charge=data["charge"], account=data["account"], number=data["number"], cents=data["cents"])


class Statements(Projection):
    """A new row for every event, with the balance of its account: the account's row is read, and written again."""

    categories = (CATEGORY,)
    lines = Table("lines", columns={"charge": "text", "account": "text", "number": "bigint", "balance": "bigint"}, key="charge")
    balances = Table("balances", columns={"account": "text", "balance": "bigint"}, key="account")

    @on("Charged")
    def charged(self, event: Event, lines: TableWriter, balances: TableWriter) -> None:
        data = event.data
        account = balances.get(account=data["account"])
        balance = (account["balance"] if account else 0) + data["cents"]
        balances.upsert(account=data["account"], balance=balance)
        lines.insert(charge=data["charge"], account=data["account"], number=data["number"], balance=balance)
