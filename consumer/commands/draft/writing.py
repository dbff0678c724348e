"""The text of a drafted mapping: TOML with comments, which loads.

Theory of operation. A draft must load. It is checked by the loader of all mappings; a line that this refuses becomes a
comment with the reason, and the rest is checked again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from consumer.commands.draft.proposing import Line, Proposal, quoted
from consumer.conversion.targets import TARGETS
from consumer.errors import MappingError

_TABLES: Final = ("", "event_names", "action_sources", "fields", "constants")
_ORDER: Final = {name: number for number, name in enumerate(TARGETS)}
_NOTES_AT: Final = 52  # the column of notes


def drafted(
    proposals: Sequence[Proposal], head: Sequence[str], load: Callable[[str], object]
) -> tuple[str, str]:
    """Return the mapping file, and why it does not load; empty if it does.

    `head` are its first lines. `load` raises `MappingError` for a text that does not load.
    """
    while True:
        lines = (line for one in proposals for line in _section(one, len(proposals) > 1))
        text = "\n".join([*head, *lines, ""])
        try:
            load(text)
        except MappingError as error:
            if not _given_up(proposals, str(error)):
                # A field that every event needs has no path at all.
                return text, str(error)
        else:
            return text, ""


def _given_up(proposals: Sequence[Proposal], error: str) -> bool:
    """Make a comment of the line that the error names; return whether there is one."""
    for proposal in (one for one in proposals if len(proposals) == 1 or one.record in error):
        for at, line in enumerate(proposal.lines):
            if line.is_active and line.key and repr(line.key) in error and f"[{line.table}]" in error:
                why = f"it does not load: {error.partition('] ')[2]}"
                proposal.lines[at] = line._replace(is_active=False, note=why)
                return True
    return False


def _section(proposal: Proposal, is_divided: bool) -> Iterator[str]:
    before = f"record.{quoted(proposal.record)}." if is_divided else ""
    yield ""
    if is_divided and proposal.missing:
        yield f"# {proposal.record} has no section, since nothing is its {' or '.join(proposal.missing)}"
        yield '# (unknown_record = "filter" at the top of the file: such records are not sent)'
        return
    for table in _TABLES:
        lines = [one for one in proposal.lines if one.table == table]
        lines.sort(key=lambda one: _ORDER.get(one.key, -1))
        header = f"{before}{table}".rstrip(".")
        if header and (lines or not table):
            yield f"\n{'' if not table or any(one.is_active for one in lines) else '# '}[{header}]"
        yield from map(_written, lines)
    yield "\n# Consent is never guessed: remove the # of the table and of what is right" + (
        ":" if proposal.consents else ", once you know its path: none looks like it."
    )
    yield from (f"# {one}" for one in (f"[{before}consent]", *(proposal.consents or ['require = ""'])))


def _written(line: Line) -> str:
    """Return a line of the file. Texts of the schema may hold line breaks."""
    note = " ".join(line.note.split())
    if not line.key:
        return f"# {note}"
    is_bare = re.fullmatch(r"[\w-]+", line.key, re.ASCII)
    key = line.key if is_bare else quoted(line.key)
    text = f"{'' if line.is_active else '# '}{key} = {line.value}"
    return f"{text:<{_NOTES_AT}}  # {note}" if note else text
