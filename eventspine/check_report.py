"""What `eventspine schema check` found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .schemas.gate import as_json

__all__ = ["Mistake", "Report"]


class Mistake(NamedTuple):
    """Something that would go wrong with these event types: what, the smallest data that shows it, and what to do.

    `kind` is for scripts: schema, gate, upcaster, class, handler, snapshot or registry.
    """

    kind: str
    event_type: str
    what: str
    advice: str
    example: Any = None
    outcome: str = ""
    details: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The block that people read."""
        block = [self.what, *(f"    {line}" for line in self.details)]
        if self.outcome:
            block.append(f"    example: {as_json(self.example)}, {self.outcome}")
        return [*block, f"    advice: {self.advice}"]

    def as_dict(self) -> dict[str, Any]:
        """The block as JSON values."""
        return self._asdict() | {"details": list(self.details)}


@dataclass
class Report:
    """All that was found, and how much was looked at."""

    mistakes: list[Mistake] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)

    def count(self, what: str, number: int = 1) -> None:
        if number:
            self.checked[what] = self.checked.get(what, 0) + number

    def summary(self) -> str:
        """What was checked, in one line."""
        counts = [f"{number:,} {what if number != 1 else _one(what)}" for what, number in self.checked.items()]
        return "checked: " + (", ".join(counts) or "nothing")


def _one(plural: str) -> str:
    """`new versions` → `new version`, `registry answers` → `registry answer`."""
    return plural.removesuffix("es") if plural.endswith("sses") else plural.removesuffix("s")
