"""Aggregates, deciders, and the tests that people write of them: without a server."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal

import msgspec
import pytest

from eventspine import Aggregate, Decider, Event, EventspineError, EventType, InvalidEvent, on
from eventspine.testing import given

OPENED = Event(event_type="AccountOpened", data={"owner": "anna"})
DEPOSITED = Event(event_type="Deposited", data={"cents": 500})
SCHEMAS = [
    EventType.from_schema({"type": "record", "name": name, "fields": [{"name": member, "type": kind}]})
    for name, member, kind in (
        ("AccountOpened", "owner", "string"),
        ("Deposited", "cents", "long"),
        ("Withdrawn", "cents", "long"),
    )
]


class Refused(Exception):
    pass


@dataclass
class Limit:
    cents: int = 1000
    since: date | None = None


class Account(Aggregate):
    snapshot_version = 3
    owner: str | None = None
    balance: Decimal = Decimal(0)
    limit: Limit = Limit()
    withdrawals: list[int] = []  # noqa: RUF012 - each aggregate gets a copy

    def open(self, owner: str) -> None:
        if self.owner is not None:
            raise Refused(f"account {self.id} is {self.owner}'s")
        self.record("AccountOpened", {"owner": owner})

    def withdraw(self, cents: int) -> None:
        if cents > self.balance:
            raise Refused(f"account {self.id} holds {self.balance} cents, not {cents}")
        self.record("Withdrawn", {"cents": cents}, tags=("money",))

    @on("AccountOpened")
    def _opened(self, event: Event) -> None:
        self.owner = event.data["owner"]

    @on("Deposited", "Withdrawn")
    def _moved(self, event: Event) -> None:
        sign = 1 if event.event_type == "Deposited" else -1
        self.balance += sign * event.data["cents"]
        if sign < 0:
            self.withdrawals.append(event.data["cents"])


class Savings(Account):
    stream_type = "SavingsAccount"
    interest: int = 2

    def withdraw(self, cents: int) -> None:
        raise Refused("savings stay")


def decide(cents: int, command: int) -> list[Event]:
    if command > cents:
        raise Refused(f"{cents} cents are not enough")
    return [Event(event_type="Withdrawn", data={"cents": command})] if command else []


def evolve(cents: int, event: Event) -> int:
    return cents + int(event.data.get("cents", 0))


WITHDRAWAL: Decider[int, int] = Decider("Account", 0, decide, evolve)


def recorded(event: Event, version: int, stream_id: str = "Account-1") -> Event:
    return msgspec.structs.replace(event, stream_id=stream_id, version=version)


def test_commands_record_and_handlers_apply() -> None:
    account = Account("1")
    account.replay(recorded(OPENED, 1))
    account.replay(recorded(DEPOSITED, 2))
    account.withdraw(200)
    account.withdraw(100)
    assert (account.owner, account.balance, account.withdrawals) == ("anna", Decimal(200), [200, 100])
    assert (account.stream_id, account.version) == ("Account-1", 2)
    assert [(event.event_type, event.stream_id, event.tags) for event in account.pending] == [
        ("Withdrawn", "Account-1", ("money",))
    ] * 2


def test_a_refused_command_records_nothing() -> None:
    account = Account("1")
    with pytest.raises(Refused):
        account.withdraw(1)
    assert account.pending == ()


def test_aggregates_share_no_state() -> None:
    one, two = Account("1"), Account("2")
    one.withdrawals.append(1)
    one.limit.cents = 1
    assert (two.withdrawals, two.limit) == ([], Limit())
    assert Account("3").withdrawals == []


def test_events_without_a_handler_only_count() -> None:
    account = Account("1")
    account.replay(recorded(Event(event_type="Renamed", data={}), 1))
    assert account.version == 1


@pytest.mark.parametrize(
    "event", [recorded(DEPOSITED, 1), recorded(DEPOSITED, 3), recorded(DEPOSITED, 2, "Account-2"), recorded(DEPOSITED, 0)]
)
def test_only_what_follows_is_replayed(event: Event) -> None:
    account = Account("1")
    account.replay(recorded(OPENED, 1))
    with pytest.raises(EventspineError, match="does not follow Account-1@1"):
        account.replay(event)


def test_a_subclass_inherits_state_and_handlers() -> None:
    savings = Savings("1")
    savings.replay(recorded(DEPOSITED, 1, "SavingsAccount-1"))
    assert (savings.balance, savings.interest, savings.stream_id) == (Decimal(500), 2, "SavingsAccount-1")
    assert set(savings.snapshot()) == {"owner", "balance", "limit", "withdrawals", "interest"}


def test_two_handlers_of_one_event_are_refused() -> None:
    with pytest.raises(EventspineError, match="one and two both handle Deposited"):

        class Twice(Aggregate):
            @on("Deposited")
            def one(self, event: Event) -> None: ...

            @on("Deposited")
            def two(self, event: Event) -> None: ...


def test_a_snapshot_keeps_types() -> None:
    account = Account("1")
    account.owner, account.balance, account.withdrawals = "anna", Decimal("0.10"), [3]
    account.limit = Limit(7, date(2026, 2, 28))
    again = Account("1")
    again.restore(msgspec.json.decode(msgspec.json.encode(account.snapshot())))
    assert vars(again) == vars(account)
    assert type(again.balance) is Decimal


@pytest.mark.parametrize("state", [{}, {"owner": 5, "balance": "1", "limit": {}, "withdrawals": []}])
def test_a_state_of_another_shape_changes_nothing(state: dict[str, object]) -> None:
    account = Account("1")
    with pytest.raises((KeyError, msgspec.ValidationError)):
        account.restore(state)
    assert vars(account) == vars(Account("1"))


def test_given_when_then() -> None:
    withdrawn = Event(event_type="Withdrawn", data={"cents": 200}, tags=("money",))
    given(Account, OPENED, DEPOSITED).when(lambda account: account.withdraw(200)).then(withdrawn)
    given(Account, OPENED).when(lambda account: account.withdraw(1)).raises(Refused, match="holds 0 cents, not 1")
    given(Account, OPENED, id="7").when(lambda account: account.open("bert")).raises(Refused, match="account 7 is anna's")
    given(WITHDRAWAL, DEPOSITED, event_types=SCHEMAS).when(500).then(Event(event_type="Withdrawn", data={"cents": 500}))
    given(WITHDRAWAL, DEPOSITED).when(501).raises(Refused, match="500 cents")
    given(WITHDRAWAL, DEPOSITED).when(0).then()


def test_given_when_then_fails_where_it_should() -> None:
    withdrawn = Event(event_type="Withdrawn", data={"cents": 1})
    outcome = given(WITHDRAWAL, DEPOSITED).when(1)
    for wrong in ([], [withdrawn, withdrawn], [DEPOSITED], [Event(event_type="Withdrawn", data={"cents": 2})]):
        with pytest.raises(AssertionError, match="other events happened"):
            outcome.then(*wrong)
    with pytest.raises(AssertionError, match="was not refused"):
        outcome.raises(Refused)
    refused = given(WITHDRAWAL).when(1)
    with pytest.raises(AssertionError, match="it was refused: Refused"):
        refused.then(withdrawn)
    with pytest.raises(AssertionError, match="not with KeyError"):
        refused.raises(KeyError)
    with pytest.raises(AssertionError, match="matching 'rich'"):
        refused.raises(Refused, match="rich")


def test_given_when_then_knows_the_schemas() -> None:
    with pytest.raises(InvalidEvent, match="cents"):
        given(WITHDRAWAL, Event(event_type="Deposited", data={"cents": "5"}), event_types=SCHEMAS)
    with pytest.raises(InvalidEvent):
        given(Account, event_types=SCHEMAS).when(lambda account: account.record("Withdrawn", {"cents": 2**70}))


def test_what_an_event_causes() -> None:
    first = Event(event_type="Deposited", data={}, metadata={"user_id": "u1", "other": 1})
    caused = first.as_cause()
    assert caused == {"causation_id": str(first.event_id), "correlation_id": str(first.event_id), "user_id": "u1"}
    second = Event(event_type="Deposited", data={}, metadata={"correlation_id": "c"})
    assert second.as_cause() == {"causation_id": str(second.event_id), "correlation_id": "c"}
