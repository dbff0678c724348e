"""What differs between two mappings over the same records: for ``--against`` of two commands, and for ``--watch``.

Theory of operation. Both mappings read the same records into `Columns`, and `Comparison` counts those that differ, by
kind: another outcome, or a field added, lost or changed, by event name. Each kind has its number of records, their
value by currency before and after, and a few examples. So memory depends on the kinds of change, not on the records;
only keys are remembered, to find events that have the key of an earlier one, and at most `MAX_KNOWN_KEYS` of them.

Values of examples are masked by `payload.Nets`: what either mapping takes for personal data is not shown, in no field.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple

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
OUTCOME: Final = "outcome"  # in place of a field: the outcome changes
_ZERO: Final = Decimal("0.00")  # a sum that begins with it has two decimals at least
_KEY: Final = "(key)"  # in place of a field: what the key store remembers changes
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


_NO_FIELDS: Final[dict[str, Any]] = {}


class RecordOutcome(NamedTuple):
    """What a mapping makes of a record: outcome and reason, and of an accepted event the key, and its fields by path.

    Of a list of objects each field is a list.
    """

    outcome: str
    reason: str = ""
    key: bytes = b""
    fields: dict[str, Any] = _NO_FIELDS


def outcomes_of(columns: Columns) -> Iterator[RecordOutcome | None]:
    """Yield what each row is; None: it waits, or was settled before."""
    accounts = [kind.account for kind in columns.kinds]
    for row in range(len(columns)):
        verdict = columns.verdicts.get(row)
        if isinstance(verdict, Untimely):
            verdict = verdict.verdict
        if isinstance(verdict, Filtered):
            yield RecordOutcome("filtered", verdict.code)
        elif isinstance(verdict, Rejection):
            yield RecordOutcome("dead_lettered", f"{verdict.stage.value}: {verdict.code}")
        elif columns.is_event(row):
            event = orjson.loads(columns.body(row)[:-1])  # without the comma behind it
            fields = {"ad_account_id": accounts[columns.kind_numbers[row]], **dict(_flat(event, ""))}
            yield RecordOutcome("accepted", "", columns.key(row), fields)
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
        self.records = 0
        self._value: defaultdict[str, list[Decimal]] = defaultdict(lambda: [_ZERO, _ZERO])
        self.examples: list[dict[str, Any]] = []

    def add(self, *both: RecordOutcome) -> None:
        """Count a record."""
        self.records += 1
        for side, one in enumerate(both):
            if one.outcome == "accepted" and "custom_data.value" in one.fields:
                value = Decimal(one.fields["custom_data.value"])
                self._value[one.fields["custom_data.currency"]][side] += value

    def document(self) -> dict[str, Any]:
        """Return the JSON form. Sums are exact, to the cent or finer."""
        value = {
            one: {"before": str(old), "after": str(new)} for one, (old, new) in sorted(self._value.items())
        }
        return {"records": self.records, "value": value, "examples": self.examples}


class Comparison:
    """Counts what differs between two mappings."""

    def __init__(self) -> None:
        self.changed, self._all = 0, Change()
        self._changes: defaultdict[tuple[str, str, str], Change] = defaultdict(Change)
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
        changes = dict(_differences(was, now)) if was != now else {}
        for field, how in changes.items():
            change = self._changes[(was.fields or now.fields).get("event_name", ""), field, how]
            change.add(was, now)
            if len(change.examples) < MAX_EXAMPLES:
                place, nets = show()
                # Of an outcome or a key the event id says which event it is.
                field = field if field in was.fields | now.fields else "event_id"
                before, after = (nets.sent(field, one.fields.get(field)) for one in (was, now))
                change.examples.append({"record": place, "before": before, "after": after})

    def _counted(self, side: int, one: RecordOutcome) -> RecordOutcome:
        keys = self._keys[side]
        if one.key in keys:
            one = one._replace(outcome="duplicate")
        elif one.key and len(keys) < MAX_KNOWN_KEYS:
            keys.add(one.key)
        self._outcomes[side][one[:2]] += 1
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
        counts = {
            "records": self._all.records,
            "changed": self.changed,
            "value": self._all.document()["value"],
        }
        return {**counts, "outcomes": outcomes, "changes": changes}


def _differences(was: RecordOutcome, now: RecordOutcome) -> Iterator[tuple[str, str]]:
    """Yield each field that differs, and how; also the outcome and the key."""
    if was[:2] != now[:2]:
        yield OUTCOME, f"{_said(*was[:2])} → {_said(*now[:2])}"
    if was.fields and now.fields:
        for field in was.fields | now.fields:
            before, after = was.fields.get(field), now.fields.get(field)
            if before != after:
                yield field, "added" if before is None else "lost" if after is None else "changed"
        if was.key != now.key and was.fields["event_id"] == now.fields["event_id"]:
            yield _KEY, "changed"


def _said(outcome: str, reason: str | None) -> str:
    return f"{outcome}: {reason}" if reason else outcome


def show_comparison(document: dict[str, Any], console: Console) -> None:
    """Print the JSON form of a comparison for people."""
    records, changes, outcomes = document["records"], document["changes"], document["outcomes"]
    if not changes:
        same = f"Nothing changes: {records:,} records, each with the same outcome and the same event."
        prose(console, same if records else "There are no records to compare.")
    else:
        prose(console, f"{document['changed']:,} of {records:,} records change.", "bold")
    # Otherwise an old sample would seem to be unchanged.
    if records and not any(one[OUTCOME] == "accepted" for one in outcomes):
        why = (
            "No record is accepted, so no event was compared (if they are too old: give --now or --max-age)."
        )
        prose(console, why, "bold red")
    for field, why in _ALARMS.items():
        if found := sum(one["records"] for one in changes if one["field"] == field):
            prose(console, f"{found:,} {why}.", "bold red")
    rows = [
        (_said(one[OUTCOME], one["reason"]), f"{one['before']:,}", f"{one['after']:,}") for one in outcomes
    ]
    if rows:
        console.print(table("outcome", ">before", ">after", rows=rows))
    for one in changes:
        money = "".join(f"; {text}" for text in _money(one["value"]))
        count = f"{one['records']:,} record{'' if one['records'] == 1 else 's'}"
        what = f"{one['event_name']} {one['field']} {one['change']}: {count}{money}"
        prose(console, what.strip(), "red" if one["field"] in _ALARMS else None)
        prose(console, f"  {'; '.join(map(_example, one['examples']))}", "dim")
    for text in _money(document["value"]):
        prose(console, f"value of accepted events: {text}")


def _money(value: dict[str, dict[str, str]]) -> Iterator[str]:
    """Yield ``EUR 59.90``, or ``EUR 59.90 → 5,990.00`` if it changes, for each currency."""
    for currency, both in value.items():
        before, after = (f"{Decimal(one):,}" for one in both.values())
        yield f"{currency} {before}" + (f" → {after}" if before != after else "")


def _example(one: dict[str, Any]) -> str:
    # Masked values may look the same.
    same = one["before"] == one["after"]
    return one["record"] if same else f"{one['record']}: {readable(one['before'])} → {readable(one['after'])}"
