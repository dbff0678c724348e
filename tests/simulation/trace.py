"""Makes a world's history readable: one line per input, one per command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from consumer.engine import messages as m
from consumer.engine.reading import split_keys


def report(now: float, member: str, happened: Any, commands: Sequence[Any]) -> None:
    """Print a process's input and its commands."""
    if isinstance(happened, m.Tick) and not commands:
        return
    print(f"{now:9.3f} {member:5} {_input(happened)}")
    for command in commands:
        print(f"{'':16}-> {_command(command)}")


def _input(happened: Any) -> str:
    match happened:
        case str():
            return f"** {happened}"
        case m.Fetched():
            return "Fetched " + "; ".join(
                f"{chunk.topic}[{chunk.partition}]e{chunk.epoch} {chunk.records[0].offset}..{chunk.records[-1].offset}"
                f" ({len(chunk.records)})"
                for chunk in happened.chunks
            )
        case m.Answered():
            return f"Answered #{happened.number} {happened.status} {happened.headers} {happened.body[:90]!r}"
        case m.Assigned():
            return "Assigned " + "; ".join(
                f"{one.topic}[{one.partition}]e{one.epoch} from {one.start}{'!' if one.commit_start else ''}"
                for one in happened.assignments
            )
    return repr(happened)[:240]


def _command(command: Any) -> str:
    match command:
        case m.Send():
            ids = [event["event_id"] for event in orjson.loads(command.body)["data"]]
            return f"Send #{command.number} to {command.account}: {' '.join(ids)}"
        case m.LookUpKeys() | m.StoreKeys():
            keys = " ".join(key.hex()[:6] for key in split_keys(command.keys))
            return f"{type(command).__name__} #{command.number}: {keys}"
        case m.StoreDeadLetters():
            letters = "; ".join(
                f"{one.topic}[{one.partition}]@{one.record.offset} {one.rejection.stage.value}/{one.rejection.code}"
                f" x{one.attempts}"
                for one in command.letters
            )
            return f"StoreDeadLetters #{command.number}: {letters}"
        case m.StoreReceipts():
            receipts = "; ".join(
                f"{one.topic}[{one.partition}]@{one.records[0].offset}..{one.records[-1].offset}"
                f" {one.outcome.disposition.value}"
                for one in command.receipts
            )
            return f"StoreReceipts #{command.number}: {receipts}"
        case m.Commit() | m.Release():
            where = " ".join(f"{p.topic}[{p.partition}]->{p.next_offset}" for p in command.positions)
            which = f" #{command.number}" if isinstance(command, m.Release) else ""
            return f"{type(command).__name__}{which}: {where}"
        case m.Report():
            return f"report {command.level} {command.event} {dict(command.fields)}"
    return repr(command)
