"""What differs between two mappings over the same records: for ``--against`` of two commands, and for ``--watch``.

Theory of operation. Both mappings read the same records into `Columns`, and `Comparison` counts those that differ, by
kind: another outcome, or a field added, lost or changed, by event name. Each kind has its number of records, their
value by currency before and after, and a few examples. So memory depends on the kinds of change, not on the records;
only keys are remembered, to find events that have the key of an earlier one, and at most `MAX_KNOWN_KEYS` of them.

Values of examples are masked by `payload.Nets`: what either mapping takes for personal data is not shown, in no field.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import orjson
from rich.console import Console

from consumer.commands.payload import Nets
from consumer.commands.results import counted, prose, readable, table
from consumer.engine.model import Filtered, Rejection, Untimely
from consumer.engine.reading import Columns
from consumer.errors import SettingsError
from consumer.settings import Settings

MAX_EXAMPLES: Final = 3  # of a kind of change
MAX_KNOWN_KEYS: Final = 500_000  # about 70 bytes each
RecordOutcome = dict[str, Any]
"""What a mapping makes of a record: `OUTCOME`, with its reason; and of an event `_KEY`, and its fields by path. Of a
list of objects each field is a list."""
OUTCOME: Final = "outcome"
_KEY: Final = "(key)"  # what the key store remembers
_VALUE: Final = "custom_data.value"
_SIDES: Final = ("before", "after")
_ALL: Final = ("", "", "")  # sorted before each kind of change
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
            yield {OUTCOME: f"filtered: {verdict.code}"}
        elif isinstance(verdict, Rejection):
            yield {OUTCOME: f"dead_lettered: {verdict.stage.value}: {verdict.code}"}
        elif columns.is_event(row):
            event = orjson.loads(columns.body(row)[:-1])  # without the comma behind it
            fields = {"ad_account_id": accounts[columns.kind_numbers[row]], **dict(_flat(event, ""))}
            yield {OUTCOME: "accepted", _KEY: columns.key(row), **fields}
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


class Comparison:
    """Counts what differs between two mappings."""

    def __init__(self) -> None:
        self._changed = 0
        # By event name, field and how it changes. `_ALL` are all records.
        self._changes = defaultdict[tuple[str, str, str], dict[str, Any]](_nothing, {_ALL: _nothing()})
        self._outcomes: dict[str, dict[str, Any]] = {}
        self._keys = {side: set[bytes]() for side in _SIDES}

    def add(
        self, was: RecordOutcome | None, now: RecordOutcome | None, show: Callable[[], tuple[str, Nets]]
    ) -> None:
        """Count a record that both mappings have judged; `show` returns its place, and what masks its values."""
        if was is None or now is None:
            return
        both = {side: self._counted(side, one) for side, one in zip(_SIDES, (was, now), strict=True)}
        differences = [*_differences(*both.values())]
        self._changed += bool(differences)
        for what in (_ALL, *differences):
            change = self._changes[what]
            change["records"] += 1
            for side, one in both.items():
                if one[OUTCOME] == "accepted" and _VALUE in one:
                    # Exact, to the cent or finer.
                    sums = change["value"].setdefault(
                        one["custom_data.currency"], dict.fromkeys(_SIDES, "0.00")
                    )
                    sums[side] = str(Decimal(sums[side]) + Decimal(one[_VALUE]))
            if len(change["examples"]) < MAX_EXAMPLES and what is not _ALL:
                place, nets = show()
                # Of an outcome or a key the event id says which event it is.
                field = "event_id" if what[1] in (OUTCOME, _KEY) else what[1]
                shown = {side: nets.sent(field, one.get(field)) for side, one in both.items()}
                change["examples"].append({"record": place, **shown})

    def _counted(self, side: str, one: RecordOutcome) -> RecordOutcome:
        keys, key = self._keys[side], one.get(_KEY)
        if key in keys:
            one = one | {OUTCOME: "duplicate"}
        elif key and len(keys) < MAX_KNOWN_KEYS:
            keys.add(key)
        outcome, _, reason = one[OUTCOME].partition(": ")
        row = {"outcome": outcome, "reason": reason or None, **dict.fromkeys(_SIDES, 0)}
        self._outcomes.setdefault(one[OUTCOME], row)[side] += 1
        return one

    def document(self) -> dict[str, Any]:
        """Return the JSON form (docs/test-your-mapping.md)."""
        for change in self._changes.values():
            change["value"] = dict(sorted(change["value"].items()))
        total, *changes = (
            {**dict(zip(("event_name", "field", "change"), what, strict=True)), **change}
            for what, change in sorted(self._changes.items(), key=lambda one: (-one[1]["records"], one[0]))
        )
        outcomes = [row for _, row in sorted(self._outcomes.items())]
        counts = {"records": total["records"], "value": total["value"], "changed": self._changed}
        return {**counts, "outcomes": outcomes, "changes": changes}


def _nothing() -> dict[str, Any]:
    return {"records": 0, "value": {}, "examples": []}


def _differences(was: RecordOutcome, now: RecordOutcome) -> Iterator[tuple[str, str, str]]:
    """Yield event name, field and how that differs; fields and keys only of two events."""
    name = (now | was).get("event_name", "")
    for field in was | now if _KEY in was and _KEY in now else (OUTCOME,):
        before, after = was.get(field), now.get(field)
        # A key that changes with the event id says nothing more.
        if before == after or (field == _KEY and was["event_id"] != now["event_id"]):
            continue
        how = "added" if before is None else "lost" if after is None else "changed"
        yield name, field, f"{before} → {after}" if field == OUTCOME else how


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
            (": ".join(filter(None, (one[OUTCOME], one["reason"]))), *(f"{one[side]:,}" for side in _SIDES))
            for one in outcomes
        ]
        console.print(table("outcome", ">before", ">after", rows=rows))
    for one in changes:
        what = f"{one['event_name']} {one['field']} {one['change']}: {counted(one['records'], 'record')}"
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
