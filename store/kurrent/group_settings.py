"""Settings of a persistent subscription: read from the protocol's messages, checked, and kept as JSON."""

from __future__ import annotations

from typing import Any

import msgspec
from grpc import StatusCode

from .faults import Fault
from .reading import ALL_FILTER, Filter
from .requests import filter_of, name_of

__all__ = ["ALL", "GroupSettings", "settings_of"]

ALL = "$all"
_STRATEGIES = ("DispatchToSingle", "RoundRobin", "Pinned", "PinnedByCorrelation")
_BY_NUMBER = _STRATEGIES[:3]


class GroupSettings(msgspec.Struct, frozen=True):
    """`start`: the revision or position of the first event, 0 = the start, -1 = the end. `max_subscribers` 0 = any number."""

    start: int = 0
    resolve_links: bool = False
    extra_statistics: bool = False
    message_timeout_ms: int = 30_000
    max_retry_count: int = 10
    checkpoint_after_ms: int = 2_000
    min_checkpoint_count: int = 10
    max_checkpoint_count: int = 1_000
    max_subscribers: int = 0
    live_buffer_size: int = 500
    read_batch_size: int = 20
    history_buffer_size: int = 500
    strategy: str = "RoundRobin"
    wanted: list[Any] = []

    @property
    def filter(self) -> Filter:
        return Filter(*self.wanted) if self.wanted else ALL_FILTER

    def start_text(self, source: str) -> str:
        return f"C:{self.start}/P:{self.start}" if source == ALL else str(self.start)


def settings_of(options: Any, before: GroupSettings | None = None) -> tuple[str, GroupSettings]:
    """Return source and settings from the options of Create, or of Update, which keeps the filter `before`.

    Raises:
        Fault: they contradict each other, or are none.
    """
    given = options.settings
    which = options.WhichOneof("stream_option")
    wanted: list[Any] = before.wanted if before is not None else []
    if which == "all":
        source, start = ALL, 0
        at = options.all.WhichOneof("all_option")
        if at == "position":
            start = min(options.all.position.commit_position, 2**63 - 1)
        elif at == "end":
            start = -1
        if options.all.WhichOneof("filter_option") == "filter":
            wanted = list(filter_of(options.all.filter)[0])
    else:
        named = options.stream.stream_identifier if which == "stream" else options.stream_identifier
        source, start = name_of(named if named.stream_name else options.stream_identifier), min(given.revision, 2**63 - 1)
        at = options.stream.WhichOneof("revision_option") if which == "stream" else None
        if at == "revision":
            start = min(options.stream.revision, 2**63 - 1)
        elif at is not None:
            start = -1 if at == "end" else 0
    if given.consumer_strategy:
        strategy = given.consumer_strategy
    else:
        strategy = _BY_NUMBER[given.named_consumer_strategy] if 0 <= given.named_consumer_strategy < 3 else "?"
    settings = GroupSettings(
        start=start,
        resolve_links=given.resolve_links,
        extra_statistics=given.extra_statistics,
        message_timeout_ms=_ms(given, "message_timeout"),
        max_retry_count=given.max_retry_count,
        checkpoint_after_ms=_ms(given, "checkpoint_after"),
        min_checkpoint_count=given.min_checkpoint_count,
        max_checkpoint_count=given.max_checkpoint_count,
        max_subscribers=given.max_subscriber_count,
        live_buffer_size=given.live_buffer_size,
        read_batch_size=given.read_batch_size,
        history_buffer_size=given.history_buffer_size,
        strategy=strategy,
        wanted=wanted,
    )
    _check(settings)
    return source, settings


def _ms(given: Any, which: str) -> int:
    if given.WhichOneof(which) == f"{which}_ticks":
        return int(getattr(given, f"{which}_ticks")) // 10_000
    return int(getattr(given, f"{which}_ms"))


def _check(settings: GroupSettings) -> None:
    faults = [
        (settings.strategy not in _STRATEGIES, f"there is no consumer strategy {settings.strategy!r}; there are {_STRATEGIES}"),
        (settings.read_batch_size < 1, "the read batch size must be 1 or more"),
        (settings.history_buffer_size <= settings.read_batch_size, "the history buffer must be larger than the read batch"),
        (settings.live_buffer_size <= 0, "the live buffer size must be 1 or more"),
        (settings.max_subscribers < 0, "the number of subscribers can't be negative"),
        (settings.max_retry_count < 0, "the number of retries can't be negative"),
        (settings.message_timeout_ms < 0 or settings.checkpoint_after_ms < 0, "times can't be negative"),
        (
            settings.max_checkpoint_count and settings.min_checkpoint_count > settings.max_checkpoint_count,
            "the least number of events between checkpoints must not be above the greatest",
        ),
    ]
    for wrong, text in faults:
        if wrong:
            raise Fault(StatusCode.INTERNAL, f"the settings of the persistent subscription are refused: {text}")
