"""Writes a run's figures into pages, between markers: ``python -m benchmarks.document``.

``<!-- bench:NAME -->`` … ``<!-- /bench -->`` holds the table or the sentence of that name (`benchmarks.tables`). The
figures are those of docs/performance.json, which is committed; a test holds that the two agree. With a file's name the
JSON is taken from there first: ``python -m benchmarks.document artifacts/bench.json``.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.systems import ROOT
from benchmarks.tables import headline, notes, tables

PAGES = (ROOT / "docs" / "performance.md", ROOT / "docs" / "benchmarks.md", ROOT / "README.md")
FIGURES = ROOT / "docs" / "performance.json"
_BLOCK = re.compile(r"<!-- bench:([a-z_-]+) -->\n(.*?)<!-- /bench -->", re.DOTALL)


def rendered(page: str, document: dict[str, Any]) -> str:
    """`page` with the figures of `document`; raises `KeyError` for a marker that it has nothing for."""
    blocks = {table.key: table.markdown() for table in tables(document)} | dict(notes(document))
    blocks["headline"] = headline(document)
    return _BLOCK.sub(lambda found: f"<!-- bench:{found[1]} -->\n{blocks[found[1]]}<!-- /bench -->", page)


def write(source: Path | None = None) -> None:
    """Take `source`'s figures, if given, beside those that it has nothing of, and write the pages."""
    if source is not None and source.resolve() != FIGURES:
        parts = [json.loads(path.read_text("utf-8")) for path in (FIGURES, source) if path.exists()]
        merged = {name: value for part in parts for name, value in part.items()}
        FIGURES.write_text(json.dumps(merged, indent=2) + "\n", "utf-8")
    document = json.loads(FIGURES.read_text("utf-8"))
    for page in PAGES:
        page.write_text(rendered(page.read_text("utf-8"), document), "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
