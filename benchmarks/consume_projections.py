"""The read models of the consumers' benchmark, as users write them."""

from __future__ import annotations

from benchmarks.consume_events import CATEGORY, is_poison
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


class RefusedByHandler(Projection):
    """Like `Charges`, but the handler raises at each charge of one account in a hundred."""

    categories = (CATEGORY,)
    table = Table("charges", columns=dict(Charges.table.columns), key="charge")

    @on("Charged")
    def charged(self, event: Event, charges: TableWriter) -> None:
        data = event.data
        if is_poison(data["account"]):
            raise ValueError(data["account"])
        charges.insert(charge=data["charge"], account=data["account"], number=data["number"], cents=data["cents"])


class RefusedByPostgres(Projection):
    """Like `Charges`, but a value of one account in a hundred is more than its column holds."""

    categories = (CATEGORY,)
    table = Table("charges", columns=Charges.table.columns | {"cents": "numeric(4)"}, key="charge")

    @on("Charged")
    def charged(self, event: Event, charges: TableWriter) -> None:
        data = event.data
        cents = data["cents"] + (10_000 if is_poison(data["account"]) else 0)
        charges.insert(charge=data["charge"], account=data["account"], number=data["number"], cents=cents)


class Sightings(Projection):
    """What the latency is measured by: a row for each event, with the moment of its append."""

    categories = (CATEGORY,)
    table = Table("sightings", columns={"charge": "text", "sent_ns": "bigint"}, key="charge")

    @on("Charged")
    def charged(self, event: Event, sightings: TableWriter) -> None:
        sightings.insert(charge=event.data["charge"], sent_ns=event.data["sent_ns"])
