"""How calls fail: the status codes, texts and trailers by which the clients tell their exceptions apart."""

from __future__ import annotations

from grpc import StatusCode

from ..protocol import Expected, ExpectedVersion

__all__ = ["Deleted", "Fault", "TooLarge", "WrongVersion", "bad_request", "expected_code"]

Trailers = tuple[tuple[str, str | bytes], ...]


class Fault(Exception):
    """End a call with a status."""

    def __init__(self, code: StatusCode, text: str, trailers: Trailers = ()) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.trailers = trailers


class WrongVersion(Fault):
    """A stream is not at the revision that was expected. `actual` is its version: 0 = no event."""

    def __init__(self, name: str, expected: ExpectedVersion, actual: int) -> None:
        trailers = (
            ("exception", "wrong-expected-version"),
            ("stream-name", _header(name)),
            ("expected-version", str(expected_code(expected))),
            ("actual-version", str(actual - 1)),
        )
        text = (
            f"Append failed due to WrongExpectedVersion. Stream: {name}, Expected version: {expected_code(expected)}, "
            f"Actual version: {actual - 1}"
        )
        super().__init__(StatusCode.FAILED_PRECONDITION, text, trailers)
        self.name = name
        self.expected = expected
        self.actual = actual


class Deleted(Fault):
    """A stream was tombstoned, or is deleted and expected to exist."""

    def __init__(self, name: str) -> None:
        trailers = (("exception", "stream-deleted"), ("stream-name", _header(name)))
        super().__init__(StatusCode.FAILED_PRECONDITION, f"Event stream '{name}' is deleted.", trailers)
        self.name = name


class TooLarge(Fault):
    """An append holds more bytes than the server takes."""

    def __init__(self, limit: int) -> None:
        trailers = (("exception", "maximum-append-size-exceeded"), ("maximum-append-size", str(limit)))
        super().__init__(StatusCode.INVALID_ARGUMENT, f"Maximum Append Size of {limit} Exceeded.", trailers)
        self.limit = limit


def bad_request(text: str) -> Fault:
    return Fault(StatusCode.INVALID_ARGUMENT, text)


def expected_code(expected: ExpectedVersion) -> int:
    """Return what the protocol's texts say for an expectation: a revision, or one of its negative numbers."""
    if isinstance(expected, Expected):
        return {Expected.NO_STREAM: -1, Expected.ANY: -2, Expected.STREAM_EXISTS: -4}[expected]
    return expected - 1


def _header(name: str) -> str:
    """Return a name as a header may hold it: printable ASCII."""
    return "".join(c if " " <= c <= "~" else "?" for c in name)
