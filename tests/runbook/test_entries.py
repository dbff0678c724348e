"""Each message, alert and banner leads to its entry in docs/runbook.md, which says how to know that it is over."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "runbook.md").read_text("utf-8")
SECTIONS = {
    title.lower().replace(" ", "-"): text
    for title, text in re.findall(r"^#{2,3} ([^\n]+)\n(.*?)(?=^## |^### |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}
INTRODUCTIONS = {"first-look", "mapping-wrong-for-a-day"}
"""Sections that only lead to others."""
LOGGED = [
    (name, re.findall(r"\]\(runbook\.md#([\w-]+)\)", says))
    for name, levels, says in re.findall(
        r"^\| `(\w+)` \| ([a-z, ]+) \| (.+) \| .+ \|$",
        (ROOT / "docs" / "logs.md").read_text("utf-8"),
        re.MULTILINE,
    )
    if {"warning", "error"} & set(levels.split(", "))
]
ALERTS = {
    rule["alert"]: rule["annotations"]["runbook_url"].partition("#")[2]
    for group in yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
SCRIPTS = {
    name: (ROOT / "consumer" / "web" / f"{name}.js").read_text("utf-8") for name in ("states", "panels")
}
STATES = set(re.findall(r"""\["(\w+)", (?:"(?:bad|warn)"|[^"\]]+ \? "bad" : "warn"),""", SCRIPTS["states"]))
"""The states that the page's banner shows in yellow or red."""
LEADS = dict(
    re.findall(r"""(\w+): "([a-z-]+)",""", SCRIPTS["states"].partition("RUNBOOK = {")[2].partition("}")[0])
)


@pytest.mark.parametrize(("event", "anchors"), LOGGED, ids=[event for event, _ in LOGGED])
def test_a_message_leads_to_its_entry(event: str, anchors: list[str]) -> None:
    """docs/logs.md names for each warning and error a section of the runbook that names the event."""
    assert anchors, f"docs/logs.md names no section of the runbook for {event}"
    assert any(f"`{event}`" in SECTIONS[anchor] for anchor in anchors), event


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_leads_to_its_entry(alert: str) -> None:
    """The annotation names a section that there is."""
    assert ALERTS[alert] in SECTIONS


def test_a_banner_leads_to_its_entry() -> None:
    """Each state of the page but the one that ends by itself names its section, and so does each line about a loss."""
    assert len(STATES) > 15
    assert STATES - {"stopping"} == LEADS.keys()
    words = (ROOT / "consumer" / "web" / "status.py").read_text("utf-8")
    named = set(re.findall(r"{_RUNBOOK}#([a-z-]+)", words))
    named |= {anchor for text in SCRIPTS.values() for anchor in re.findall(r"""see\("([a-z-]+)"\)""", text)}
    assert len(named) >= 6
    assert {*LEADS.values(), *named} <= SECTIONS.keys()


@pytest.mark.parametrize("section", SECTIONS)
def test_an_entry_says_when_it_is_over(section: str) -> None:
    """A sentence or a column says how to know; a section that only leads to others has neither."""
    says = "**Solved when**" in SECTIONS[section] or "| it is over when |" in SECTIONS[section]
    assert says == (section not in INTRODUCTIONS)
