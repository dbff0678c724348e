"""The stages of a record, and which moves between them are legal.

Theory of operation. The stage is one byte, and says where a record is on its way. Two rules:

* A record is open until its stage is final. Only the ledger settles a record; a block makes a row final that another
  assignment or another row settles (PASSED, REWOUND). The lowest open record of an assignment is the first byte that is
  not final in its first unfinished block: nothing is committed past that.
* A stage changes only as `MOVES` says; any other change is a bug and raises `InvariantViolation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from enum import IntEnum
from typing import Final, NamedTuple

from consumer.engine.model import Disposition


class RecordStage(IntEnum):
    """The stage that a record is on. `MOVES` says which change is legal, who makes it and what a crash then means."""

    # Entered in the ledger; it gets its next stage while the same input is handled.
    READ = 0
    # Waits for its writer's schema.
    SCHEMA = 1
    # Waits for its time, which lies ahead, or until the current time is certain.
    CLOCK = 2
    # Its schema or its time has come; waits for room in the budget.
    ROOM = 3
    # Waits for another open record with the same key, which leads.
    FOLLOWING = 4
    # Leads its key; the key store is asked whether it was delivered before.
    LOOKED_UP = 5
    # Leads its key here; another member has the key in flight, so this record waits for the outcome there.
    CLAIMED_BY_OTHER = 6
    # Waits in its account's queue, for its batch or for the next attempt.
    QUEUED = 7
    # In a call that is not answered yet.
    IN_FLIGHT = 8
    # Delivered; its key is being written.
    STORING = 9
    # Its dead letter is being written.
    DEAD_LETTERING = 10
    # Its outcome is known; the receipt of it is being written.
    RECEIPTING = 11
    # No new work begins for it: its partition is being drained, or the guard has tripped.
    FREED = 12
    # The stages from here on are final.
    DELIVERED = 13
    DUPLICATE = 14
    FILTERED = 15
    DEAD_LETTERED = 16
    # Settled before this assignment: the offset map it came with says so.
    PASSED = 17
    # The log was read again from before it: another row settles the record, although its block is still ours.
    REWOUND = 18


class Move(NamedTuple):
    """How a record comes to a stage. `after_crash`: what becomes of a record that was on this stage in a crash."""

    of: Set[RecordStage]
    """The stages that it may come from."""
    by: str
    """The methods of `consumer.engine.steps.Steps` that make it (PASSED, REWOUND: the block, the ledger)."""
    after_crash: str


_S = RecordStage
_AGAIN = "read again"
# How a record comes to each stage but the first. "After a crash" is where its offset was not committed, and no offset
# map says that it is settled. docs/architecture.md shows this table.
MOVES: Final[Mapping[RecordStage, Move]] = {
    _S.SCHEMA: Move({_S.READ, _S.ROOM}, "aside", _AGAIN),
    _S.CLOCK: Move({_S.READ, _S.ROOM}, "aside", _AGAIN),
    _S.ROOM: Move({_S.SCHEMA, _S.CLOCK}, "unparked", _AGAIN),
    _S.FOLLOWING: Move({_S.READ, _S.ROOM}, "claim", f"{_AGAIN}: a claim is in memory only"),
    _S.LOOKED_UP: Move(
        {_S.READ, _S.ROOM, _S.FOLLOWING, _S.QUEUED},
        "claim, transfer, claim_again",
        _AGAIN,
    ),
    _S.CLAIMED_BY_OTHER: Move({_S.LOOKED_UP, _S.CLAIMED_BY_OTHER}, "looked_up", _AGAIN),
    _S.QUEUED: Move(
        {_S.LOOKED_UP, _S.CLAIMED_BY_OTHER, _S.IN_FLIGHT}, "looked_up, judged", f"{_AGAIN}, sent"
    ),
    _S.IN_FLIGHT: Move({_S.QUEUED}, "send", "read again, sent again under the same event id"),
    _S.STORING: Move({_S.IN_FLIGHT, _S.RECEIPTING}, "judged", "sent again under the same event id"),
    _S.DEAD_LETTERING: Move(
        {_S.READ, _S.SCHEMA, _S.ROOM, _S.IN_FLIGHT}, "dead_letter", "its letter may be written twice"
    ),
    # From each stage before STORING, DUPLICATE, FILTERED or DEAD_LETTERED, if receipts are wanted.
    _S.RECEIPTING: Move(
        {
            _S.READ,
            _S.SCHEMA,
            _S.ROOM,
            _S.FOLLOWING,
            _S.LOOKED_UP,
            _S.CLAIMED_BY_OTHER,
            _S.IN_FLIGHT,
            _S.DEAD_LETTERING,
        },
        "conclude",
        "as on the stage before; it may have two receipts",
    ),
    # What has its outcome is not freed: its key or its receipt is being written.
    _S.FREED: Move(
        {one for one in _S if _S.SCHEMA <= one < _S.FREED} - {_S.STORING, _S.RECEIPTING},
        "free",
        f"{_AGAIN}, by the next owner or after the restart",
    ),
    _S.DELIVERED: Move({_S.STORING}, "keys_stored", "a duplicate: its key is durable (not with `memory:`)"),
    _S.DUPLICATE: Move(
        {_S.LOOKED_UP, _S.CLAIMED_BY_OTHER, _S.FOLLOWING, _S.RECEIPTING},
        "looked_up, keys_stored",
        "a duplicate again",
    ),
    _S.FILTERED: Move({_S.READ, _S.SCHEMA, _S.ROOM, _S.RECEIPTING}, "aside", "filtered again"),
    _S.DEAD_LETTERED: Move(
        {_S.DEAD_LETTERING, _S.RECEIPTING}, "letters_stored", "its letter is written twice"
    ),
    _S.PASSED: Move({_S.READ}, "block, when it is made", "passed over again"),
    _S.REWOUND: Move({_S(n) for n in range(_S.DELIVERED)}, "ledger.rewind", _AGAIN),
}
REWOUND: Final = int(_S.REWOUND)
# The stage of a record that is settled, by its disposition.
SETTLED_AS: Final = {one: RecordStage[one.name] for one in Disposition}
# The outcome of a record, by the stage that it goes to with it. A delivered event settles only once its key is stored.
OUTCOME_BEFORE: Final = {
    _S.STORING if one is Disposition.DELIVERED else stage: one for one, stage in SETTLED_AS.items()
}
# By stage, a list: looked up at every move.
MAY_COME_FROM: Final[list[Set[RecordStage]]] = [
    MOVES[one].of if one in MOVES else set() for one in RecordStage
]
