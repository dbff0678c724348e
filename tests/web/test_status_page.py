"""docs/status.md has the tables that the figures' definitions make.

`python -m tests.web.test_status_page` writes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from consumer.engine.figures.definitions import figures_of
from consumer.engine.figures.statistics import Statistics
from consumer.web import metrics, status
from consumer.workers.showing import WorkerFigures
from tests.web import status_page

PAGE = Path(__file__).parents[2] / "docs" / "status.md"
TABLES = {
    "fields": lambda: status_page.status_table(status.Document, status_page.Info),
    "fields of workers": lambda: status_page.status_table(WorkerFigures, path="workers[]"),
    "metrics": lambda: status_page.metrics_table(Statistics, status.Document),
    "metrics of workers": lambda: status_page.metrics_table(WorkerFigures, WorkerFigures, path="workers[]"),
}


def written(page: str) -> str:
    """The page with the tables that the definitions make."""
    for name, table in TABLES.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        assert len(marked.findall(page)) == 1, f"docs/status.md has no <!-- {name} --> … <!-- /{name} -->"
        page = marked.sub(lambda found, table=table: found[1] + table() + found[2], page)  # type: ignore[misc]
    return page


def test_the_page_is_current() -> None:
    """Each table equals the generated one, and the histograms are named."""
    page = PAGE.read_text("utf-8")
    assert page == written(page), "run: python -m tests.web.test_status_page"
    [histograms] = re.findall(r"Counters end in `_total`; ([^.]*) are histograms", page)
    kinds = {family.name: family.kind for family, _ in metrics.families(Statistics, ())}
    assert {*re.findall(r"`(\w+)`", histograms)} == {
        name for name, kind in kinds.items() if kind == "histogram"
    }


def all_figures(owner: type) -> Iterator[tuple[str, Any]]:
    """The figures of a type of snapshots and of its parts, with their places."""
    for attribute in figures_of(owner):
        yield f"{owner.__name__}.{attribute.name}", attribute
        yield from all_figures(attribute.shape.item)


FIGURES = dict(
    found for owner in (status.Document, status_page.Info, WorkerFigures) for found in all_figures(owner)
)
NAMES_ITSELF = {"topic", "partition", "offset"}


def test_a_figure_is_described() -> None:
    """Each figure has a sentence unless its name is enough; in plain text if it is a metric's help too."""
    for name, attribute in FIGURES.items():
        figure = attribute.figure
        if attribute.name in NAMES_ITSELF or not (attribute.path or figure.metric):
            continue
        if figures_of(attribute.shape.item) and not figure.metric:
            continue  # its own figures are told of
        assert figure.sentence.endswith("."), name
        assert not re.search(r"[|\n]", figure.sentence + figure.status_note), f"{name}: a cell of a table"
        if figure.metric:
            assert not re.search(r"`|\]\(", figure.sentence + figure.metric_note), f"{name}: plain text"


def test_a_figure_that_cannot_be_added_says_how_workers_become_one() -> None:
    """States, texts and what may be unknown."""
    merged = ("Statistics.", "Totals.", "Counters.", "ClockStatistics.")
    for name, attribute in FIGURES.items():
        item, optional, _ = attribute.shape
        if (
            attribute.is_field
            and name.startswith(merged)
            and (optional or issubclass(item, (str, bool, Enum)))
        ):
            assert attribute.figure.merge is not None, name


def test_no_name_stands_twice() -> None:
    """Neither on /metrics nor in one object of /status."""
    for names in (
        [one.name for one, _ in metrics.families(Statistics, ())]
        + [one.name for one, _ in metrics.families(WorkerFigures, ())],
        re.findall(
            r"^\| `([^`]+)` \|", status_page.status_table(status.Document, status_page.Info), re.MULTILINE
        ),
    ):
        assert len(names) == len(set(names))


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
