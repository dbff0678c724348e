"""What differs between two mappings over the same records: for ``--against`` of two commands, and for ``--watch``.

Theory of operation. Both mappings read the same records into `Columns`, and `Comparison` counts those that differ, by
kind: another outcome, or a field added, lost or changed, by event name. Each kind has its number of records, their
value by currency before and after, and a few examples. So memory depends on the kinds of change, not on the records;
only keys are remembered, to find events that have the key of an earlier one, and at most `MAX_KNOWN_KEYS` of them.

Values of examples are masked by `payload.Nets`: what either mapping takes for personal data is not shown, in no field.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import click
import orjson
from rich.console import Console

from consumer.commands.payload import Nets
from consumer.commands.results import prose, readable, table
from consumer.engine.model import Filtered, Rejection, Untimely
from consumer.engine.reading import Columns
from consumer.errors import SettingsError
from consumer.settings import Settings

MAX_EXAMPLES: Final = 3  # of a kind of change
MAX_KNOWN_KEYS: Final = 500_000  # about 70 bytes each
AGAINST_OPTION: Final = click.option(
    "--against",
    metavar="OLD",
    help="Compare with the mapping file OLD over the same records: outcomes, fields, values, event ids. Exit code 1 if "
    "anything changes.",
)
RecordOutcome = dict[str, Any]
"""What a mapping makes of a record: `OUTCOME`, with its reason; and of an event `_KEY`, and its fields by path. Of a
list of objects each field is a list."""
OUTCOME: Final = "outcome"
_KEY: Final = "(key)"  # what the key store remembers
_ACCEPTED: Final = ("accepted", "")
_VALUE: Final = "custom_data.value"
_ZERO: Final = Decimal("0.00")  # a sum that begins with it has two decimals at least
_ALARMS: Final = {
    "event_id": "event ids change: Pinterest does not recognise these events as those that the tag sends, nor the key "
    "store as delivered. What was sent before is sent again, and counts twice",
    _KEY: "events keep their event id and change their key ([dedup], event name or ad account): the key store does not "
    "recognise them as delivered. What was sent before is sent again",
}


@contextmanager
def of_old(settings: Settings, old: str) -> Iterator[Settings]:
    """Yield the settings with the mapping file `old`. Errors about that file name ``--against``."""
    own = settings.pinstream.model_copy(update={"mapping_file": Path(old)})
    try:
        yield settings.model_copy(update={"pinstream": own})
    except SettingsError as error:
        raise type(error)(str(error).replace("PINSTREAM_MAPPING_FILE:", "--against:", 1)) from None


def outcomes_in(columns: Columns) -> Iterator[RecordOutcome | None]:
    """Yield what each row is; None: it waits, or was settled before."""
    accounts = [kind.account for kind in columns.kinds]
    for row in range(len(columns)):
        verdict = columns.verdicts.get(row)
        if isinstance(verdict, Untimely):
            verdict = verdict.verdict
        if isinstance(verdict, Filtered):
            yield {OUTCOME: ("filtered", verdict.code)}
        elif isinstance(verdict, Rejection):
            yield {OUTCOME: ("dead_lettered", f"{verdict.stage.value}: {verdict.code}")}
        elif columns.is_event(row):
            event = orjson.loads(columns.body(row)[:-1])  # without the comma behind it
            fields = {"ad_account_id": accounts[columns.kind_numbers[row]], **dict(_flat(event, ""))}
            yield {OUTCOME: _ACCEPTED, _KEY: columns.key(row), **fields}
        else:
            yield None


def _flat(value: dict[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{above}{name}.")
        elif isinstance(inner, list) and isinstance(inner[0], dict):
            for key in dict.fromkeys(key for item in inner for key in item):
                yield f"{above}{name}[].{key}", [item.get(key) for item in inner]
        else:
            yield above + name, inner


class Change:
    """Records that change in one way: how many, their value by currency before and after, and the first ones."""

    def __init__(self) -> None:
        self.records, self.examples = 0, list[dict[str, Any]]()
        self._value = defaultdict[str, list[Decimal]](lambda: [_ZERO, _ZERO])

    def add(self, *both: RecordOutcome) -> None:
        """Count a record."""
        self.records += 1
        for side, one in enumerate(both):
            if one[OUTCOME] == _ACCEPTED and _VALUE in one:
                self._value[one["custom_data.currency"]][side] += Decimal(one[_VALUE])

    def document(self) -> dict[str, Any]:
        """Return the JSON form. Sums are exact, to the cent or finer."""
        sums = sorted(self._value.items())
        value = {one: {"before": str(old), "after": str(new)} for one, (old, new) in sums}
        return {"records": self.records, "value": value, "examples": self.examples}


class Comparison:
    """Counts what differs between two mappings."""

    def __init__(self) -> None:
        self.changed, self._all = 0, Change()
        self._changes = defaultdict[tuple[str, str, str], Change](Change)
        # Before and after: records by outcome and reason, and the keys of events.
        self._outcomes = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        self._keys = set[bytes](), set[bytes]()

    def add(
        self, was: RecordOutcome | None, now: RecordOutcome | None, show: Callable[[], tuple[str, Nets]]
    ) -> None:
        """Count a record that both mappings have judged; `show` returns its place, and what masks its values."""
        if was is None or now is None:
            return
        was, now = self._counted(0, was), self._counted(1, now)
        self._all.add(was, now)
        self.changed += was != now
        for field, how in _differences(was, now):
            change = self._changes[(now | was).get("event_name", ""), field, how]
            change.add(was, now)
            if len(change.examples) < MAX_EXAMPLES:
                place, nets = show()
                # Of an outcome or a key the event id says which event it is.
                shown = "event_id" if field in (OUTCOME, _KEY) else field
                before, after = (nets.sent(shown, one.get(shown)) for one in (was, now))
                change.examples.append({"record": place, "before": before, "after": after})

    def _counted(self, side: int, one: RecordOutcome) -> RecordOutcome:
        keys, key = self._keys[side], one.get(_KEY)
        if key in keys:
            one = one | {OUTCOME: ("duplicate", "")}
        elif key and len(keys) < MAX_KNOWN_KEYS:
            keys.add(key)
        self._outcomes[side][one[OUTCOME]] += 1
        return one

    def document(self) -> dict[str, Any]:
        """Return the JSON form (docs/test-your-mapping.md)."""
        before, after = self._outcomes
        outcomes = [
            {"outcome": one[0], "reason": one[1] or None, "before": before[one], "after": after[one]}
            for one in sorted({*before, *after})
        ]
        changes = [
            {"event_name": what[0], "field": what[1], "change": what[2], **change.document()}
            for what, change in sorted(self._changes.items(), key=lambda one: (-one[1].records, one[0]))
        ]
        total = self._all.document()
        del total["examples"]
        return {**total, "changed": self.changed, "outcomes": outcomes, "changes": changes}


def _differences(was: RecordOutcome, now: RecordOutcome) -> Iterator[tuple[str, str]]:
    """Yield what differs, and how; fields and keys only of two events."""
    for field in was | now if _KEY in was and _KEY in now else (OUTCOME,):
        before, after = was.get(field), now.get(field)
        # A key that changes with the event id says nothing more.
        if before == after or (field == _KEY and was["event_id"] != now["event_id"]):
            continue
        if field == OUTCOME:
            yield field, f"{_said(*was[OUTCOME])} → {_said(*now[OUTCOME])}"
        else:
            yield field, "added" if before is None else "lost" if after is None else "changed"


def _said(outcome: str, reason: str | None) -> str:
    return f"{outcome}: {reason}" if reason else outcome


def agrees(document: Mapping[str, Any]) -> bool:
    """Return whether a comparison found events, and no difference. Where no record is accepted nothing was compared."""
    return not document["changed"] and any(one[OUTCOME] == "accepted" for one in document["outcomes"])


def show_comparison(document: Mapping[str, Any], console: Console) -> None:
    """Print the JSON form of a comparison for people."""
    records, changes, outcomes = document["records"], document["changes"], document["outcomes"]
    said = f"{document['changed']:,} of {records:,} records change."
    if not changes:
        said = f"Nothing changes: {records:,} records, each with the same outcome and the same event."
    prose(console, said if records else "There are no records to compare.", "bold" if changes else None)
    if records and not changes and not agrees(document):
        why = (
            "No event was accepted or compared; if they are too old, explain has --now, replay has --max-age."
        )
        prose(console, why, "bold red")
    for field, why in _ALARMS.items():
        if found := sum(one["records"] for one in changes if one["field"] == field):
            prose(console, f"{found:,} {why}.", "bold red")
    if outcomes:
        rows = [
            (_said(one[OUTCOME], one["reason"]), f"{one['before']:,}", f"{one['after']:,}")
            for one in outcomes
        ]
        console.print(table("outcome", ">before", ">after", rows=rows))
    for one in changes:
        count = f"{one['records']:,} record{'' if one['records'] == 1 else 's'}"
        what = f"{one['event_name']} {one['field']} {one['change']}: {count}"
        text = "; ".join([what.strip(), *_money(one["value"])])
        prose(console, text, "red" if one["field"] in _ALARMS else None)
        prose(console, f"  {'; '.join(map(_example, one['examples']))}", "dim")
    for text in _money(document["value"]):
        prose(console, f"value of accepted events: {text}")
    if missed := document.get("not_compared"):
        prose(console, f"{missed:,} records were read and not compared: they have no schema, or wait.")


def _money(value: dict[str, dict[str, str]]) -> Iterator[str]:
    """Yield ``EUR 59.90``, or ``EUR 59.90 → 5,990.00`` if it changes, for each currency."""
    for currency, both in value.items():
        before, after = (f"{Decimal(one):,}" for one in both.values())
        yield f"{currency} {before}" + (f" → {after}" if before != after else "")


def _example(one: dict[str, Any]) -> str:
    # Masked values may look the same.
    same = one["before"] == one["after"]
    return one["record"] if same else f"{one['record']}: {readable(one['before'])} → {readable(one['after'])}"
