"""What Apicurio's serdes ask for: our registry and Apicurio's own answer the same requests in the same way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
from fastavro.schema import to_parsing_canonical_form

from eventspine.schemas.registry_users import Users, hash_password
from tests.registry import client, serving

ADDRESS = {"type": "record", "name": "Address", "namespace": "crm", "fields": [{"name": "street", "type": "string"}]}
CUSTOMER = {"type": "record", "name": "Customer", "namespace": "crm", "fields": [{"name": "home", "type": "crm.Address"}]}
LARGER = {**ADDRESS, "fields": [*ADDRESS["fields"], {"name": "floor", "type": "int", "default": 0}]}
FIND_OR_CREATE = "/groups/default/artifacts?ifExists=FIND_OR_CREATE_VERSION"
JSON = {"Content-Type": "application/json"}
NOT_KEPT = {"createdOn", "modifiedOn", "owner", "modifiedBy", "labels"}


def artifact(subject: str, schema: Any, *references: dict[str, str]) -> dict[str, Any]:
    content = {"content": json.dumps(schema), "contentType": "application/json", "references": list(references)}
    return {"artifactId": subject, "artifactType": "AVRO", "firstVersion": {"content": content}}


def reference(subject: str) -> dict[str, str]:
    return {"groupId": "default", "artifactId": subject, "version": "1", "name": "crm.Address"}


class Story:
    """Requests to one registry, with what is compared of each answer: no times, no names of classes, no numbers of ids."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.answers: dict[str, Any] = {}

    async def ask(self, said: str, method: str, path: str, body: Any = None) -> Any:
        answer = await self._http.request(method, f"/apis/registry/v3{path}", content=body and json.dumps(body), headers=JSON)
        told = answer.json()
        self.answers[said] = (answer.status_code, self._compared(told) if answer.is_success else sorted(told))
        return told

    def _compared(self, told: Any) -> Any:
        if isinstance(told, list):
            return [self._compared(each) for each in told]
        if not isinstance(told, dict) or "fields" in told:
            return told
        kept = {key: self._compared(value) for key, value in told.items() if key not in NOT_KEPT}
        return kept | {key: "a number" for key in ("globalId", "contentId") if type(kept.get(key)) is int}


async def tell(http: httpx.AsyncClient, subject: str) -> dict[str, Any]:
    story, other = Story(http), f"{subject}-other"
    versions = f"/groups/default/artifacts/{subject}/versions"
    search = f"/search/versions?groupId=default&artifactType=AVRO&artifactId={subject}"
    created = await story.ask("a new artifact", "POST", FIND_OR_CREATE, artifact(subject, ADDRESS))
    again = await story.ask("an artifact that is there", "POST", FIND_OR_CREATE, artifact(subject, ADDRESS))
    assert again["version"]["globalId"] == created["version"]["globalId"]
    await story.ask("a second version", "POST", FIND_OR_CREATE, artifact(subject, LARGER))
    referring = await story.ask("references", "POST", FIND_OR_CREATE, artifact(other, CUSTOMER, reference(subject)))
    for kind, key in (("contentIds", "contentId"), ("globalIds", "globalId")):
        number = referring["version"][key]
        await story.ask(f"schema of {kind}", "GET", f"/ids/{kind}/{number}")
        await story.ask(f"references of {kind}", "GET", f"/ids/{kind}/{number}/references")
        await story.ask(f"{kind} without", "GET", f"/ids/{kind}/{created['version'][key]}/references")
        for wrong in (0, 2**31 - 1):
            await story.ask(f"{kind} {wrong}", "GET", f"/ids/{kind}/{wrong}")
            await story.ask(f"references of {kind} {wrong}", "GET", f"/ids/{kind}/{wrong}/references")
    full = await story.ask("in full", "GET", f"/ids/globalIds/{referring['version']['globalId']}?references=DEREFERENCE")
    story.answers["in full"] = to_parsing_canonical_form(full)
    for wanted in ("1", "2", "branch%3Dlatest", "3"):
        for part in ("", "/content", "/references"):
            await story.ask(f"version {wanted}{part}", "GET", f"{versions}/{wanted}{part}")
    await story.ask("another group", "GET", f"/groups/{subject}/artifacts/{subject}/versions/1")
    await story.ask("no such artifact", "GET", f"/groups/default/artifacts/{subject}x/versions/1/content")
    await story.ask("search", "POST", search, LARGER)
    await story.ask("search for another schema", "POST", search, {**ADDRESS, "name": "Other"})
    await story.ask("search in nothing", "POST", f"{search}x", ADDRESS)
    return story.answers


async def test_answers(pool: asyncpg.Pool, apicurio_url: str) -> None:
    subject = f"t{uuid4().hex[:10]}"
    async with serving(pool) as url, client(url) as ours, client(apicurio_url.removesuffix("/apis/ccompat/v7")) as theirs:
        got, expected = await tell(ours, subject), await tell(theirs, subject)
    assert {said: (got[said], answer) for said, answer in expected.items() if got[said] != answer} == {}


async def test_refusals(pool: asyncpg.Pool, tmp_path: Path) -> None:
    (tmp_path / "users").write_text(f"{hash_password('writer', 'w')}\n{hash_password('reader', 'r', read_only=True)}\n")
    reader, writer = ("reader", "r"), ("writer", "w")
    root, new = "/apis/registry/v3", artifact("s", ADDRESS)
    async with serving(pool, users=Users.from_file(tmp_path / "users")) as url, client(f"{url}{root}") as http:

        async def refused(body: Any, path: str = FIND_OR_CREATE, auth: tuple[str, str] = writer) -> tuple[int, str]:
            answer = await http.post(path, json=body, auth=auth)
            problem = answer.json()
            assert (problem["status"], answer.headers["content-type"]) == (answer.status_code, "application/json")
            return answer.status_code, problem["title"]

        anonymous = await http.get("/ids/contentIds/1")
        assert (anonymous.status_code, anonymous.json()["status"], "www-authenticate" in anonymous.headers) == (401, 401, True)
        assert (await refused(new, auth=reader))[0] == 403
        assert (await http.post("/search/versions?artifactId=s", json=ADDRESS, auth=reader)).json() == {
            "count": 0,
            "versions": [],
        }
        assert (await http.post(FIND_OR_CREATE, json=new, auth=writer)).status_code == 200
        number = {"type": "record", "name": "Address", "namespace": "crm", "fields": [{"name": "street", "type": "int"}]}
        status, said = await refused(artifact("s", number))
        assert (status, "street" in said) == (409, True)
        for status, word, body, path in (
            (400, "ifExists", new, "/groups/default/artifacts"),
            (404, "group-id", new, FIND_OR_CREATE.replace("default", "crm")),
            (404, "group-id", artifact("c", CUSTOMER, {**reference("s"), "groupId": "crm"}), FIND_OR_CREATE),
            (400, "numbered", {**new, "firstVersion": {**new["firstVersion"], "version": "7"}}, FIND_OR_CREATE),
            (400, "artifactId", {**new, "artifactId": 7}, FIND_OR_CREATE),
            (400, "first version", {"artifactId": "s"}, FIND_OR_CREATE),
            (400, "first version", {**new, "firstVersion": {"content": {"content": "", "references": [7]}}}, FIND_OR_CREATE),
            (400, "no JSON object", [], FIND_OR_CREATE),
            (422, "Empty schema", artifact("s", "x") | {"firstVersion": {"content": {"content": ""}}}, FIND_OR_CREATE),
            (422, "PROTOBUF", {**new, "artifactType": "PROTOBUF"}, FIND_OR_CREATE),
            (422, "subject", artifact("", ADDRESS), FIND_OR_CREATE),
            (422, "Invalid schema", artifact("c", CUSTOMER, reference("x")), FIND_OR_CREATE),
        ):
            answered, said = await refused(body, path)
            assert (answered, word in said) == (status, True), said
