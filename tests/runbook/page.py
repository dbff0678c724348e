"""Reads docs/runbook.md into sections of steps: commands, and what the words between them ask of a person.

A section is what stands under a heading, up to the next one. Commands stand in ``sh`` blocks, one a line; a backslash
goes on in the next, and ``# says: X`` behind one is what it has to print. ``<!-- test: X -->`` is where the text asks
for something that no command on the page does (a restart): a world does it there. Whatever else could be meant for a
command is an error, so that none goes by unrun.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

_FENCE = re.compile(r"```(\S*)")
_HEADING = re.compile(r"(#{1,6}) (.+)")
_HOOK = re.compile(r"<!-- test: (.+) -->")
_SAYS = re.compile(r"\s+# says: (.+)$")
_INLINE = re.compile(r"`([^`\n]+)`")


class Command(NamedTuple):
    """One command; `says`: a line that the page says it prints."""

    text: str
    says: str | None = None


class Hook(NamedTuple):
    """A person's action, which the world performs here."""

    name: str


@dataclass
class PageSection:
    """The text and the steps under one heading."""

    title: str
    steps: list[Command | Hook] = field(default_factory=list)
    text: str = ""
    """The whole text, to search for names."""


def read_page(page: str) -> list[PageSection]:
    """The sections that have steps. Raises `ValueError` for anything that the test would not run."""
    sections: list[PageSection] = [PageSection("")]
    lines = iter(page.splitlines())
    for line in lines:
        if heading := _HEADING.fullmatch(line):
            sections.append(PageSection(heading[2]))
        elif fence := _FENCE.match(line):
            if fence[1] != "sh":
                raise ValueError(
                    f"a block of {fence[1] or 'nothing'}: commands stand in sh blocks, nothing else does"
                )
            block = _block(lines)
            sections[-1].steps += _commands(block)
            sections[-1].text += "\n".join(block)
        elif "<!--" in line:
            hook = _HOOK.fullmatch(line)
            if hook is None:
                raise ValueError(f"no comment that is known: {line}")
            sections[-1].steps.append(Hook(hook[1]))
        else:
            _refuse_command(line)
        sections[-1].text += line + "\n"
    found = [section for section in sections if section.steps]
    titles = [section.title for section in found]
    if len(set(titles)) < len(titles):
        raise ValueError(f"two sections of one name: {titles}")
    return found


def _block(lines: Iterator[str]) -> list[str]:
    block: list[str] = []
    for line in lines:
        if line == "```":
            return block
        block.append(line)
    raise ValueError("a block that does not end")


def _commands(block: list[str]) -> list[Command]:
    found = []
    for line in re.sub(r"\s*\\\n\s*", " ", "\n".join(block)).splitlines():
        says = _SAYS.search(line)
        text = line[: says.start()] if says else line
        if text.strip():
            found.append(Command(text.strip(), says[1].strip() if says else None))
    return found


def _refuse_command(line: str) -> None:
    if line.startswith(("    ", "~~~")):
        raise ValueError(f"code outside of an sh block: {line}")
    for code in _INLINE.findall(line):
        if re.match(r"(curl|jq|cp|mv|rm|cat|export|until|bash) |pinstream .*--", code):
            raise ValueError(f"a whole command between the lines, where nobody runs it: {code}")
