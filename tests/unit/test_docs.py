"""The pages: what they name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eventspine.metrics import METRICS

_ROOT = Path(__file__).parents[2]
_PAGES = [
    _ROOT / "README.md",
    *sorted((_ROOT / "docs").rglob("*.md")),
    _ROOT / "CHANGELOG.md",
    _ROOT / "benchmarks" / "RESULTS.md",
]


def test_every_guarantee_names_a_test_that_exists() -> None:
    page = (_ROOT / "docs" / "guarantees.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "| ---" not in line][1:]
    assert len(rows) > 10
    for row in rows:
        match = re.search(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row)
        assert match, f"no test is named in: {row}"
        text = (_ROOT / match[1]).read_text()
        assert match[2] is None or f"def {match[2]}(" in text, f"{match[2]} is not in {match[1]}"


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    page = (_ROOT / "docs" / "metrics.md").read_text()
    told = [line for line in page.splitlines() if line.startswith("| `eventspine_")]
    for name in re.findall(r"eventspine_[a-z_]+", page.partition("## Alerts")[2]):
        assert name.removesuffix("_sum") in {each.name for each in METRICS}
    assert told == [
        f"| `{each.name}` | {each.kind} | {', '.join(f'`{label}`' for label in each.labels)} | {each.tells} |" for each in METRICS
    ]
