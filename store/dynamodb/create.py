"""The table: made, or written down for those who make tables otherwise."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, Final

from botocore.exceptions import ClientError

from ...schemas import EventspineError, SettingsError, Unavailable
from .layout import definition
from .table import Table, translated

__all__ = ["cloudformation", "create_table", "terraform"]

_ACTIVE_WITHIN_S: Final = 120.0


async def create_table(table: Table) -> bool:
    """Make the table, billed by request, with its index and point-in-time recovery; return False if it is there already.

    Raises:
        SettingsError: a table of that name has other keys, or the login lacks a right.
        Unavailable: DynamoDB is away, or the table was not active after two minutes.
    """
    wanted = definition(table.name)
    with translated():
        try:
            await table.client.create_table(**wanted)
            made = True
        except ClientError as error:
            if error.response["Error"]["Code"] != "ResourceInUseException":
                raise
            made = False
        began = time.monotonic()
        while True:
            found = (await table.client.describe_table(TableName=table.name))["Table"]
            if found["TableStatus"] == "ACTIVE":
                break
            if time.monotonic() - began > _ACTIVE_WITHIN_S:
                raise Unavailable(f"table {table.name} is {found['TableStatus']} after two minutes: run it again")
            await asyncio.sleep(1)
    indexes = {index["IndexName"]: index["KeySchema"] for index in found.get("GlobalSecondaryIndexes", [])}
    [index] = wanted["GlobalSecondaryIndexes"]
    if found["KeySchema"] != wanted["KeySchema"] or indexes.get("GSI1") != index["KeySchema"]:
        raise SettingsError(f"table {table.name} is there with other keys, or without the index GSI1: choose another name")
    if made:
        try:
            with translated():
                await table.client.update_continuous_backups(
                    TableName=table.name, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
                )
        except EventspineError as error:
            cause = error.__cause__
            if not isinstance(cause, ClientError) or cause.response["Error"]["Code"] != "UnknownOperationException":
                raise  # DynamoDB Local knows no backups
    return made


def cloudformation(name: str) -> str:
    """Return the table as a CloudFormation template (JSON). It is kept when the stack is deleted."""
    properties = definition(name) | {"PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": True}}
    resource = {
        "Type": "AWS::DynamoDB::Table",
        "DeletionPolicy": "Retain",
        "UpdateReplacePolicy": "Retain",
        "Properties": properties,
    }
    return json.dumps({"AWSTemplateFormatVersion": "2010-09-09", "Resources": {"Events": resource}}, indent=2)


def terraform(name: str) -> str:
    """Return the table as a Terraform resource."""
    wanted = definition(name)
    attributes = "\n\n".join(
        f'  attribute {{\n    name = "{each["AttributeName"]}"\n    type = "{each["AttributeType"]}"\n  }}'
        for each in wanted["AttributeDefinitions"]
    )
    [index] = wanted["GlobalSecondaryIndexes"]
    table, of_index = _keys(wanted["KeySchema"]), _keys(index["KeySchema"])
    return f'''resource "aws_dynamodb_table" "events" {{
  name         = "{name}"
  billing_mode = "PAY_PER_REQUEST"
  hash_key     = "{table["HASH"]}"
  range_key    = "{table["RANGE"]}"

{attributes}

  global_secondary_index {{
    name            = "{index["IndexName"]}"
    hash_key        = "{of_index["HASH"]}"
    range_key       = "{of_index["RANGE"]}"
    projection_type = "ALL"
  }}

  point_in_time_recovery {{
    enabled = true
  }}

  lifecycle {{
    prevent_destroy = true
  }}
}}
'''


def _keys(schema: list[dict[str, Any]]) -> dict[str, str]:
    return {each["KeyType"]: each["AttributeName"] for each in schema}
