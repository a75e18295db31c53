"""One DynamoDB table: items as Python values, conditions, transactions; errors in our terms."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError, PartialCredentialsError

from ...schemas import EventspineError, SettingsError, Unavailable

__all__ = [
    "MAX_TRANSACTION_ITEMS",
    "Cancelled",
    "Item",
    "Reason",
    "Table",
    "TableAddress",
    "open_table",
    "parse_dsn",
    "put",
    "translated",
]

MAX_TRANSACTION_ITEMS: Final = 100

Item = dict[str, Any]
"""Attributes by name: str, int, bool, bytes, or a list of these."""

_AWAY: Final = frozenset(
    {
        "InternalServerError", "InternalFailure", "ServiceUnavailable", "ServiceUnavailableException", "RequestTimeout",
        "ThrottlingException", "Throttling", "ThrottledException", "ProvisionedThroughputExceededException",
        "RequestLimitExceeded", "LimitExceededException", "TransactionInProgressException", "TransactionConflictException",
        "ReplicatedWriteConflictException",
    }
)  # fmt: skip
_REFUSED: Final = frozenset(
    {
        "AccessDeniedException", "UnrecognizedClientException", "InvalidSignatureException", "IncompleteSignature",
        "MissingAuthenticationTokenException", "ExpiredTokenException", "InvalidClientTokenId",
    }
)  # fmt: skip
_MISSING: Final = frozenset({"ResourceNotFoundException", "TableNotFoundException"})
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{3,255}")


class Reason(NamedTuple):
    """Why DynamoDB did not do one operation of a transaction: a code ("None": it is not to blame), and the item that is there."""

    code: str
    item: Item | None


class Cancelled(Exception):
    """Tell that a transaction was not done. `reasons` has one for each operation, in order."""

    def __init__(self, reasons: Sequence[Reason]) -> None:
        super().__init__(", ".join(reason.code for reason in reasons))
        self.reasons = reasons


class TableAddress(NamedTuple):
    """Where a table is. An empty region or endpoint is what the AWS settings of the machine say."""

    name: str
    region: str
    endpoint: str


def parse_dsn(dsn: str) -> TableAddress:
    """Read `dynamodb://TABLE?region=eu-central-1&endpoint=http://127.0.0.1:8000`.

    Raises:
        SettingsError: it is none.
    """
    parts = urlsplit(dsn)
    options = dict(parse_qsl(parts.query))
    unknown = options.keys() - {"region", "endpoint"}
    if parts.scheme != "dynamodb" or not _NAME.fullmatch(parts.netloc) or parts.path or unknown:
        raise SettingsError(f"{dsn!r} names no DynamoDB table; use dynamodb://TABLE, with ?region=… and &endpoint=… where needed")
    return TableAddress(parts.netloc, options.get("region", ""), options.get("endpoint", ""))


@asynccontextmanager
async def open_table(dsn: str, *, max_connections: int = 50, timeout_s: float = 10.0) -> AsyncIterator[Table]:
    """Open a client of a table, which need not exist. Credentials are those that AWS's tools find.

    Raises:
        SettingsError: the DSN names no table, or there is no region.
    """
    address = parse_dsn(dsn)
    config = AioConfig(  # tried again by us: a transaction again under its token, an append only while its caller waits
        retries={"total_max_attempts": 1}, connect_timeout=timeout_s, read_timeout=timeout_s, max_pool_connections=max_connections
    )
    async with AsyncExitStack() as opened:
        try:
            with translated():
                made = get_session().create_client(
                    "dynamodb", region_name=address.region or None, endpoint_url=address.endpoint or None, config=config
                )
                client = await opened.enter_async_context(made)
        except ValueError as error:
            raise SettingsError(f"{dsn!r}: {error}; use an endpoint like http://127.0.0.1:8000") from error
        yield Table(client, address.name)


@contextmanager
def translated() -> Iterator[None]:
    """Turn whatever the client raises inside into an EventspineError; its error stays as the cause.

    Raises:
        Unavailable: DynamoDB is away, or throttles: retry.
        SettingsError: the table is missing, or the login or a right.
        Cancelled: a transaction was not done.
        EventspineError: anything else that DynamoDB refused.
    """
    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        said = error.response.get("Error", {}).get("Message", "") or code
        if code == "TransactionCanceledException":
            reasons = error.response.get("CancellationReasons") or []
            raise Cancelled([Reason(each.get("Code", "None"), _read(each.get("Item"))) for each in reasons]) from error
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _AWAY or status >= 500:
            raise Unavailable(f"DynamoDB is away: {code}: {said}") from error
        if code in _MISSING:
            raise SettingsError(f"{said}: make the table with `eventspine dynamodb create-table`") from error
        if code in _REFUSED:
            raise SettingsError(f"DynamoDB refused the login or lacks a right for it: {said}") from error
        raise EventspineError(f"DynamoDB refused: {code}: {said}") from error
    except (NoCredentialsError, PartialCredentialsError, NoRegionError) as error:
        raise SettingsError(f"{error}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, and a region") from error
    except (BotoCoreError, aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Unavailable(f"DynamoDB is away: {error or type(error).__name__}") from error


class Table:
    """A table whose keys are the strings PK and SK. Reads are consistent unless they say otherwise.

    `units` counts the capacity units that were consumed, as DynamoDB tells them, if `counting`.
    """

    def __init__(self, client: Any, name: str) -> None:
        self.client = client
        self.name = name
        self.counting = False
        self.units: dict[str, float] = {"read": 0.0, "write": 0.0}

    async def get(self, key: Item) -> Item | None:
        """Return an item, None if there is none."""
        answer = await self._call("read", "get_item", TableName=self.name, Key=_written(key), ConsistentRead=True)
        return _read(answer.get("Item"))

    async def get_many(self, keys: Sequence[Item]) -> list[Item]:
        """Return those items that there are of many, in no order."""
        found: list[Item] = []
        waiting = [_written(key) for key in keys]
        while waiting:
            now, waiting = waiting[:100], waiting[100:]
            request = {self.name: {"Keys": now, "ConsistentRead": True}}
            answer = await self._call("read", "batch_get_item", RequestItems=request)
            found += [_read(item) or {} for item in answer["Responses"].get(self.name, [])]
            left = answer.get("UnprocessedKeys", {}).get(self.name, {}).get("Keys", [])
            if len(left) == len(now):
                raise Unavailable("DynamoDB throttles reads")
            waiting = left + waiting
        return found

    async def put(self, item: Item, *, if_absent: bool = False, if_value: tuple[str, Any] | None = None) -> bool:
        """Write an item; tell whether the condition held."""
        condition: dict[str, Any] = {}
        if if_absent:
            condition = {"ConditionExpression": "attribute_not_exists(PK)"}
        elif if_value is not None:
            condition = {
                "ConditionExpression": "#c = :c",
                "ExpressionAttributeNames": {"#c": if_value[0]},
                "ExpressionAttributeValues": {":c": _attribute(if_value[1])},
            }
        return await self._conditionally("put_item", TableName=self.name, Item=_written(item), **condition)

    async def update(
        self,
        key: Item,
        *,
        values: Mapping[str, Any],
        add: Mapping[str, int] | None = None,
        if_absent: Mapping[str, Any] | None = None,
        condition: str = "",
        given: Mapping[str, Any] | None = None,
    ) -> bool:
        """Set attributes, add to numbers, and set those that are absent; tell whether the condition (over `given`) held."""
        names, parameters, sets, adds = {}, {}, [], []
        for number, (name, value) in enumerate([*values.items(), *(if_absent or {}).items()]):
            names[f"#s{number}"], parameters[f":s{number}"] = name, _attribute(value)
            sets.append(f"#s{number} = " + (f":s{number}" if name in values else f"if_not_exists(#s{number}, :s{number})"))
        for number, (name, value) in enumerate((add or {}).items()):
            names[f"#a{number}"], parameters[f":a{number}"] = name, _attribute(value)
            adds.append(f"#a{number} :a{number}")
        parameters |= {name: _attribute(value) for name, value in (given or {}).items()}
        expression = f"SET {', '.join(sets)}" + (f" ADD {', '.join(adds)}" if adds else "")
        return await self._conditionally(
            "update_item",
            TableName=self.name,
            Key=_written(key),
            UpdateExpression=expression,
            ExpressionAttributeNames=names,
            ExpressionAttributeValues=parameters,
            **({"ConditionExpression": condition} if condition else {}),
        )

    async def query(
        self,
        partition: str,
        *,
        after: str = "",
        first: str = "",
        last: str = "",
        backwards: bool = False,
        page: int | None = None,
    ) -> AsyncIterator[Item]:
        """Yield a partition's items by sort key: behind `after`, or from `first` to `last`, where those are given."""
        low = after or first or " "
        values = {":p": _attribute(partition), ":l": _attribute(low), ":h": _attribute(last or "~")}
        request: dict[str, Any] = {
            "TableName": self.name,
            "KeyConditionExpression": "PK = :p AND SK BETWEEN :l AND :h",
            "ExpressionAttributeValues": values,
            "ConsistentRead": True,
            "ScanIndexForward": not backwards,
        }
        if page is not None:
            request["Limit"] = page
        async for item in self._pages(request):
            if not after or item["SK"] != after:
                yield item

    async def query_index(self, partition: str, first: int, last: int) -> AsyncIterator[Item]:
        """Yield from the index GSI1, which may lag, the items of a partition whose number lies between two."""
        async for item in self._pages(
            {
                "TableName": self.name,
                "IndexName": "GSI1",
                "KeyConditionExpression": "GSI1PK = :p AND GSI1SK BETWEEN :f AND :l",
                "ExpressionAttributeValues": {":p": _attribute(partition), ":f": _attribute(first), ":l": _attribute(last)},
            }
        ):
            yield item

    async def write(self, *, puts: Sequence[Item], deletes: Sequence[Item]) -> None:
        """Put and delete items, all or none."""
        operations: list[dict[str, Any]] = [{"Put": {"Item": _written(item)}} for item in puts]
        operations += [{"Delete": {"Key": _written(key)}} for key in deletes]
        try:
            await self.transact(operations)
        except Cancelled as error:  # nothing is conditional: others write these items, or DynamoDB throttles
            raise Unavailable(f"DynamoDB did not do a transaction: {error}") from error

    async def transact(self, operations: Sequence[dict[str, Any]], *, token: str = "") -> None:
        """Do operations, all or none. Under one token they are done once, however often they are sent within ten minutes.

        Raises:
            Cancelled: none was done; it has the reason of each.
            Unavailable: nobody knows whether they were done.
        """
        for operation in operations:
            for each in operation.values():
                each["TableName"] = self.name
        await self._call(
            "write", "transact_write_items", TransactItems=operations, **({"ClientRequestToken": token} if token else {})
        )

    async def _pages(self, request: dict[str, Any]) -> AsyncIterator[Item]:
        while True:
            answer = await self._call("read", "query", **request)
            for item in answer["Items"]:
                yield _read(item) or {}
            if "LastEvaluatedKey" not in answer:
                return
            request = request | {"ExclusiveStartKey": answer["LastEvaluatedKey"]}

    async def _conditionally(self, method: str, **request: Any) -> bool:
        try:
            await self._call("write", method, **request)
        except EventspineError as error:
            cause = error.__cause__
            if isinstance(cause, ClientError) and cause.response["Error"]["Code"] == "ConditionalCheckFailedException":
                return False
            raise
        return True

    async def _call(self, kind: str, method: str, **request: Any) -> dict[str, Any]:
        if self.counting:
            request["ReturnConsumedCapacity"] = "TOTAL"
        with translated():
            answer: dict[str, Any] = await getattr(self.client, method)(**request)
        if self.counting:
            consumed = answer.get("ConsumedCapacity", [])
            for each in consumed if isinstance(consumed, list) else [consumed]:
                self.units[kind] += each.get("CapacityUnits", 0.0)
        return answer


def _attribute(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"S": value}
    if isinstance(value, bool):
        return {"BOOL": value}
    if isinstance(value, int):
        return {"N": str(value)}
    if isinstance(value, bytes):
        return {"B": value}
    return {"L": [_attribute(each) for each in value]}


def _value(attribute: Mapping[str, Any]) -> Any:
    [(kind, value)] = attribute.items()
    if kind == "N":
        return int(value)
    return [_value(each) for each in value] if kind == "L" else value


def _written(item: Item) -> dict[str, Any]:
    return {name: _attribute(value) for name, value in item.items()}


def _read(item: Mapping[str, Any] | None) -> Item | None:
    return {name: _value(attribute) for name, attribute in item.items()} if item else None


def put(item: Item, condition: str = "", values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the operation of a transaction that puts an item, under a condition."""
    operation: dict[str, Any] = {"Item": _written(item)}
    if condition:
        operation["ConditionExpression"] = condition
        operation["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"
        if values:
            operation["ExpressionAttributeValues"] = _written(dict(values))
    return {"Put": operation}
