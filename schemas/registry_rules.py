"""What the schema registry decides, without I/O: which schema an offered one is, whether it may follow, what may be deleted.

Codes and sentences are those that clients of Confluent's registry know; where a sentence says more, it begins like theirs.

Source: https://docs.confluent.io/platform/current/schema-registry/develop/api.html (paths, JSON, error codes)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from .avro_rules import MAX_DEFINITION_BYTES, check_schema, parse_definition
from .compatibility import Level, incompatibilities
from .errors import SchemaError

__all__ = [
    "DEFAULT_LEVEL",
    "MOST",
    "Library",
    "Offer",
    "Reference",
    "Refusal",
    "Settings",
    "Version",
    "check_mode",
    "check_subject",
    "complaints",
    "decide_registration",
    "find_version",
    "fingerprint",
    "level_named",
    "listed",
    "mode_named",
    "no_reference",
    "normal_form",
    "object_in",
    "offer_in",
    "only_version",
    "resolved",
    "subject_to_delete",
    "text_of",
    "version_number",
    "version_to_delete",
]

DEFAULT_LEVEL = Level.FULL_TRANSITIVE
MOST = 2**31 - 1
"""The highest id and the highest version."""

_MODES = ("READWRITE", "READONLY", "READONLY_OVERRIDE", "IMPORT")
_NAMED = ("record", "error", "enum", "fixed")
_PRIMITIVES = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
_LATEST = -1
_LONGEST_SUBJECT_BYTES = 1000  # an index holds 2,700


class Refusal(Exception):
    """An answer other than success: HTTP status, the registry's own error code, a sentence."""

    def __init__(self, status: int, code: int, said: str) -> None:
        super().__init__(said)
        self.status = status
        self.code = code


class Reference(NamedTuple):
    """Where a named type is defined that a schema uses: the version of another subject."""

    name: str
    subject: str
    version: int


class Version(NamedTuple):
    """One version of a subject, and its schema."""

    subject: str
    version: int
    schema_id: int
    definition: str
    references: tuple[Reference, ...] = ()
    deleted: bool = False


Library = Mapping[tuple[str, int], Version]
"""The versions that schemas refer to, and those that these refer to, by subject and version."""


class Offer(NamedTuple):
    """A schema that a client sent, as it came. `version` and `schema_id` are 0 unless the client chose them."""

    text: str
    references: tuple[Reference, ...] = ()
    version: int = 0
    schema_id: int = 0


class Settings(NamedTuple):
    """What the registry was told of a subject, and in general; None = nothing."""

    level: str | None = None
    mode: str | None = None
    general_level: str | None = None
    general_mode: str | None = None

    @property
    def level_in_scope(self) -> Level:
        return Level(self.level or self.general_level or DEFAULT_LEVEL)

    @property
    def mode_in_scope(self) -> str:
        if self.general_mode == "READONLY_OVERRIDE":
            return self.general_mode
        return self.mode or self.general_mode or "READWRITE"


def offer_in(body: bytes) -> Offer:
    """Read the body of a request that holds a schema.

    Raises:
        Refusal: it is not JSON, or asks for what this registry does not do.
    """
    request = object_in(body)
    text, kind = request.get("schema"), request.get("schemaType")
    if kind not in (None, "", "AVRO"):
        raise Refusal(422, 42201, f"Invalid schema type {kind}: this registry holds Avro schemas only")
    for unknown, code in (("ruleSet", 42210), ("metadata", 42201), ("schemaTagsToAdd", 42201), ("schemaTagsToRemove", 42201)):
        if request.get(unknown):
            raise Refusal(422, code, f"This registry keeps no {unknown}: send the schema without it")
    if not isinstance(text, str) or not text.strip():
        raise Refusal(422, 42201, "Empty schema")
    references = request.get("references") or []
    if not isinstance(references, list):
        raise Refusal(422, 42201, f"Invalid schema: the references are no list: {references!r:.100}")
    wanted = [request.get(key) or 0 for key in ("version", "id")]
    if not all(type(number) is int and number <= MOST for number in wanted):
        raise Refusal(422, 42201, f"version and id are numbers up to {MOST}")
    return Offer(text, tuple(map(_reference_in, references)), *(max(number, 0) for number in wanted))


def object_in(body: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        Refusal: it is none.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, 400, f"The request's body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refusal(400, 400, "The request's body is no JSON object")
    return value


def level_named(request: Mapping[str, Any]) -> Level:
    """Return the compatibility level that a request sets.

    Raises:
        Refusal: there is no such level, or the request sets what this registry does not have.
    """
    others = [key for key, value in request.items() if key not in ("compatibility", "compatibilityLevel") and value]
    if others:
        raise Refusal(422, 42203, f"This registry has no setting {others[0]!r}: send the compatibility alone")
    name = str(request.get("compatibility") or request.get("compatibilityLevel")).upper()
    if name not in Level.__members__:
        allowed = "none, backward, forward, full, backward_transitive, forward_transitive, and full_transitive"
        raise Refusal(422, 42203, f"Invalid compatibility level. Valid values are {allowed}")
    return Level(name)


def mode_named(request: Mapping[str, Any]) -> str:
    """Return the mode that a request sets.

    Raises:
        Refusal: there is no such mode.
    """
    name = str(request.get("mode")).upper()
    if name not in _MODES:
        raise Refusal(422, 42204, f"Invalid mode. Valid values are {', '.join(_MODES)}")
    return name


def check_subject(subject: str) -> None:
    """Check a subject that something is to be written under.

    Raises:
        Refusal: it is no name for a subject here.
    """
    length = len(text_of(subject).encode())
    if not 1 <= length <= _LONGEST_SUBJECT_BYTES or subject in ("__GLOBAL", "__EMPTY") or subject.startswith(":"):
        said = f"a subject has 1 to {_LONGEST_SUBJECT_BYTES:,} bytes, no control characters, and no context in front"
        raise Refusal(422, 42208, f"The specified subject '{subject[:100]}' is not a valid subject: {said}")


def text_of(text: str) -> str:
    """Return a text that Postgres and its readers can hold; "" for any other."""
    if any(character < " " or "\x7f" <= character < "\xa0" or "\ud800" <= character <= "\udfff" for character in text):
        return ""
    return text


def version_number(text: str) -> int | None:
    """Return the version that a path names; None stands for the latest.

    Raises:
        Refusal: it names none.
    """
    if text in ("latest", str(_LATEST)):
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= MOST):
        allowed = 'Allowed values are between [1, 2^31-1] and the string "latest"'
        raise Refusal(422, 42202, f"The specified version '{text[:100]}' is not a valid version id. {allowed}")
    return int(text)


def listed(versions: Sequence[Version], subject: str, *, deleted: bool = False) -> list[Version]:
    """Return the versions that are shown: those that are not deleted, or all.

    Raises:
        Refusal: there is none.
    """
    shown = [version for version in versions if deleted or not version.deleted]
    if not shown:
        raise Refusal(404, 40401, f"Subject '{subject}' not found.")
    return shown


def only_version(versions: Sequence[Version], subject: str, wanted: str, *, deleted: bool = False) -> Version:
    """Return one version of a subject; the latest is never a deleted one.

    Raises:
        Refusal: there is no such version.
    """
    number = version_number(wanted)
    shown = listed(versions, subject, deleted=deleted)
    if number is None:
        shown = [version for version in shown if not version.deleted][-1:]
    for version in shown:
        if number in (None, version.version):
            return version
    raise Refusal(404, 40402, f"Version {wanted} not found.")


def check_mode(subject: str, settings: Settings) -> None:
    """Check that something may be written under a subject.

    Raises:
        Refusal: it is read-only.
    """
    if settings.mode_in_scope.startswith("READONLY"):
        raise Refusal(422, 42205, f"Subject {subject or '(all)'} in context . is in read-only mode")


def version_to_delete(versions: Sequence[Version], subject: str, wanted: str, *, permanent: bool) -> Version:
    """Return the version that a deletion means.

    Raises:
        Refusal: there is none, it is deleted already, or it is not deleted and is to be so permanently.
    """
    version = only_version(versions, subject, wanted, deleted=True)
    if version.deleted and not permanent:
        said = f"Subject '{subject}' Version {version.version} was soft deleted. Set permanent=true to delete permanently"
        raise Refusal(404, 40406, said)
    if permanent and not version.deleted:
        said = f"Subject '{subject}' Version {version.version} was not deleted first before being permanently deleted"
        raise Refusal(404, 40407, said)
    return version


def subject_to_delete(versions: Sequence[Version], subject: str, *, permanent: bool) -> list[Version]:
    """Return the versions that the deletion of a subject means.

    Raises:
        Refusal: as for a version, with a subject's codes.
    """
    everything = listed(versions, subject, deleted=True)
    present = [version for version in everything if not version.deleted]
    if not present and not permanent:
        said = f"Subject '{subject}' was soft deleted. Set permanent=true to delete permanently"
        raise Refusal(404, 40404, said)
    if present and permanent:
        raise Refusal(404, 40405, f"Subject '{subject}' was not deleted first before being permanently deleted")
    return everything if permanent else present


def normal_form(offer: Offer, *, normalize: bool) -> str:
    """Return an offered schema as it is stored: keys sorted, no white space; with `normalize`, names in full as well.

    Raises:
        Refusal: it is no JSON, or too much of it.
    """
    if len(offer.text) > MAX_DEFINITION_BYTES:
        raise Refusal(422, 42209, f"The schema is too large: it is longer than {MAX_DEFINITION_BYTES:,} characters")
    try:
        schema = parse_definition(offer.text)
        return _dumped(_in_full(schema, "") if normalize else schema)
    except SchemaError as error:
        raise Refusal(422, 42201, f"Invalid schema: {error}") from error
    except RecursionError as error:
        raise Refusal(422, 42201, "Invalid schema: it is nested too deeply") from error


def fingerprint(definition: str, references: Sequence[Reference]) -> bytes:
    """Return what tells schemas apart: SHA-256 of the normal form, as for event types, and of the references if there are any."""
    return hashlib.sha256((definition + (_dumped(references) if references else "")).encode()).digest()


def resolved(definition: str, references: Sequence[Reference], library: Library) -> Any:
    """Return a schema as parsed JSON that refers to nothing outside itself: names in full, referenced types put in their places.

    Raises:
        SchemaError: a reference leads nowhere, or a name is defined twice.
    """
    known: dict[str, Any] = {}
    for reference in references:
        _collect(reference, library, known, set())
    try:
        schema = _in_full(parse_definition(definition), "")
        twice = known.keys() & _types_in(schema).keys()
        if twice:
            raise SchemaError(f"{min(twice)} is defined in the schema, and in one that it refers to")
        return _inlined(schema, "", known, set())
    except RecursionError as error:
        raise SchemaError("it is nested too deeply") from error


def find_version(versions: Sequence[Version], definition: str, offer: Offer, library: Library) -> Version | None:
    """Return the latest of some versions whose schema is the offered one, however that is spelt; None if there is none.

    Names that are written in full or not, and types that are referred to or written out, make no difference.

    Raises:
        Refusal: the offered schema refers to nothing, or is no valid Avro.
    """
    known = _same_text(versions, definition, offer)
    return known or _same_schema(versions, _valid(definition, offer, library), library)


def complaints(
    definition: str, offer: Offer, earlier: Sequence[Version], library: Library, level: Level, *, verbose: bool = False
) -> list[str]:
    """Return why an offered schema may not follow earlier ones (oldest first) under a level; [] if it may.

    Raises:
        Refusal: it is no valid Avro; with `verbose`, that is a complaint.
    """
    try:
        return _complaints(_valid(definition, offer, library), earlier, library, level)
    except Refusal as refusal:
        if not verbose:
            raise
        return [str(refusal)]


def decide_registration(
    subject: str, definition: str, offer: Offer, versions: Sequence[Version], library: Library, settings: Settings
) -> Version | None:
    """Return the version that the offered schema has already; None if it may become the next one.

    Raises:
        Refusal: it is invalid or incompatible, or the subject's mode forbids it.
    """
    present = [version for version in versions if not version.deleted]
    known = _same_text(present, definition, offer)
    if known is None:
        schema = _valid(definition, offer, library)
        known = _same_schema(present, schema, library)
    if known is not None and offer.schema_id in (0, known.schema_id) and offer.version in (0, known.version):
        return known
    check_mode(subject, settings)
    importing = settings.mode_in_scope == "IMPORT"
    if bool(offer.schema_id) != importing:
        lacks = "import" if offer.schema_id else "read-write"
        raise Refusal(422, 42205, f"Subject {subject} in context . is not in {lacks} mode")
    if importing:
        return None
    if known is not None:
        said = f"Version is not one more than previous version: the schema is version {known.version} already"
        raise Refusal(422, 42201, said)
    following = max((version.version for version in versions), default=0) + 1
    if offer.version not in (0, following):
        raise Refusal(422, 42201, f"Version is not one more than previous version: the next one is {following}")
    found = _complaints(schema, present, library, settings.level_in_scope)
    if found:
        said = f'Schema being registered is incompatible with an earlier schema for subject "{subject}", details: '
        raise Refusal(409, 409, f"{said}{'; '.join(found)}; compatibility: {settings.level_in_scope}")
    return None


def no_reference(reference: Reference) -> str:
    """Say that a reference leads nowhere."""
    return f'No schema reference found for subject "{reference.subject}" and version {reference.version}'


def _same_schema(versions: Sequence[Version], schema: Any, library: Library) -> Version | None:
    wanted = _dumped(schema)
    for version in reversed(versions):
        if _dumped(resolved(version.definition, version.references, library)) == wanted:
            return version
    return None


def _complaints(schema: Any, earlier: Sequence[Version], library: Library, level: Level) -> list[str]:
    try:
        old = [resolved(version.definition, version.references, library) for version in earlier]
        found = incompatibilities(schema, old, level)
    except SchemaError as error:
        raise Refusal(422, 42201, f"Invalid schema: {error}") from error
    return [f"{each.kind} at {each.path or 'the root'}: {each.said}" for each in found]


def _same_text(versions: Sequence[Version], definition: str, offer: Offer) -> Version | None:
    wanted = fingerprint(definition, offer.references)
    for version in reversed(versions):
        if fingerprint(version.definition, version.references) == wanted:
            return version
    return None


def _valid(definition: str, offer: Offer, library: Library) -> Any:
    try:
        schema = resolved(definition, offer.references, library)
        check_schema(schema, recursive=True)
    except SchemaError as error:
        raise Refusal(422, 42201, f"Invalid schema: {error}") from error
    return schema


def _reference_in(value: Any) -> Reference:
    fields = [value.get(key) for key in ("name", "subject", "version")] if isinstance(value, dict) else []
    match fields:
        case [str(name), str(subject), int(version)] if text_of(name) and text_of(subject) and _is_version(version):
            return Reference(name, subject, version)
    raise Refusal(422, 42201, f"Invalid reference: {value!r:.200}")


def _is_version(number: int) -> bool:
    return type(number) is int and (number == _LATEST or 1 <= number <= MOST)


def _collect(reference: Reference, library: Library, known: dict[str, Any], visited: set[tuple[str, int]]) -> None:
    """Add the named types that a reference brings, those first that it needs itself."""
    place = (reference.subject, reference.version)
    if place in visited:
        return
    visited.add(place)
    version = library.get(place)
    if version is None:
        raise SchemaError(no_reference(reference))
    try:
        for inner in version.references:
            _collect(inner, library, known, visited)
        known |= _types_in(_in_full(json.loads(version.definition), ""))
    except RecursionError as error:
        raise SchemaError("it is nested too deeply") from error


def _in_full(schema: Any, namespace: str) -> Any:
    """Return a schema with every name in full. What is no schema is left as it is: the check of the whole says so.

    A name outside all namespaces, inside a namespace, keeps `"namespace": ""` beside it: as Avro wants it.
    """
    if isinstance(schema, str):
        return schema if "." in schema or schema in _PRIMITIVES or not namespace else f"{namespace}.{schema}"
    if isinstance(schema, list):
        return [_in_full(branch, namespace) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.keys() == {"type"} and schema["type"] in _PRIMITIVES:
        return schema["type"]
    full = dict(schema)
    own = schema.get("namespace", namespace)
    if schema.get("type") in _NAMED and isinstance(schema.get("name"), str) and isinstance(own, str):
        name = schema["name"] if "." in schema["name"] or not own else f"{own}.{schema['name']}"
        full["name"] = name
        full.pop("namespace", None)
        if "." not in name and namespace:
            full["namespace"] = ""
        namespace = name.rpartition(".")[0]
    return _mapped(full, lambda inner: _in_full(inner, namespace))


def _inlined(schema: Any, namespace: str, known: Mapping[str, Any], defined: set[str]) -> Any:
    """Put the definition of each known type where its full name stands first, and the name where it would stand again."""
    if isinstance(schema, str):
        if schema not in known or schema in defined:
            return schema
        return _inlined(known[schema], namespace, known, defined)
    if isinstance(schema, list):
        return [_inlined(branch, namespace, known, defined) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    full = dict(schema)
    if schema.get("type") in _NAMED and isinstance(schema.get("name"), str):
        name = schema["name"]
        if name in known and name in defined:
            return name
        defined.add(name)
        full.pop("namespace", None)
        if "." not in name and namespace:
            full["namespace"] = ""
        namespace = name.rpartition(".")[0]
    return _mapped(full, lambda inner: _inlined(inner, namespace, known, defined))


def _mapped(schema: dict[str, Any], change: Any) -> dict[str, Any]:
    """Return a schema with the types inside it changed."""
    for key in ("items", "values"):
        if key in schema:
            schema[key] = change(schema[key])
    if isinstance(schema.get("fields"), list):
        schema["fields"] = [
            {**member, "type": change(member["type"])} if isinstance(member, dict) and "type" in member else member
            for member in schema["fields"]
        ]
    return schema


def _types_in(schema: Any) -> dict[str, Any]:
    """Return the definitions of all named types in a schema with full names."""
    found: dict[str, Any] = {}
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting += each
        elif isinstance(each, dict):
            if each.get("type") in _NAMED and isinstance(each.get("name"), str):
                found.setdefault(each["name"], each)
            waiting += [each[key] for key in ("items", "values") if key in each]
            members: Collection[Any] = each["fields"] if isinstance(each.get("fields"), list) else ()
            waiting += [member.get("type") for member in members if isinstance(member, dict)]
    return found


def _dumped(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
