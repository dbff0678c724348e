"""Bytes taken for choices: how a fuzzer's input becomes structured data, the same whichever engine made it.

A target reads its input from the front: a byte for a choice, two bytes for a length, the rest as it is. What is
not there reads as zero, so every input means something, and one byte more changes little: that is what lets a
coverage-guided fuzzer climb. Nothing here is random.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

T = TypeVar("T")

MARK: Final = "jane.doe@private.example"
"""The personal data in seeds and built values: no message may hold it."""

_PIECES: Final = (
    "", " ", "0", "1", "9" * 20, "a", "é", "ß", "İ", "\u0301", "\u0316", "\u3099", "\ufdfa", "\u0344", "\ud800",
    "\udfff", "\0", "\n", "\u2028", "٣", "/", "@", ".", "-", "+", "e9", "NaN", "inf", "-1", "1e308", "1e999999999",
    "0.1", "00", "a@b.c", "2020-01-01", "T00:00:00Z", "http://", "[::1]", "203.0.113.7", "US-", "ca", "the ",
    "0" * 64, "EUR", "en", "true", "{", "[", '"', "\\", MARK,
)  # fmt: skip
_REPEATS: Final = (1, 1, 1, 1, 2, 3, 64, 300, 5_000)


class DataProvider:
    """Takes choices from the front of `data`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def more(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def byte(self) -> int:
        """The next byte; 0 behind the end."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def below(self, limit: int) -> int:
        """A number from 0 to `limit` - 1 (at most 256 of them)."""
        return self.byte() % limit

    def pick(self, choices: Sequence[T]) -> T:
        """One of `choices`; the first where nothing is left."""
        return choices[self.below(len(choices))]

    def take(self, size: int) -> bytes:
        """Up to `size` bytes."""
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def sized(self) -> bytes:
        """Bytes whose length is in the two bytes before them."""
        return self.take(int.from_bytes(self.take(2), "big"))

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))

    def number(self) -> int:
        """A whole number of either sign, small or up to 64 bits."""
        return int.from_bytes(self.take(self.below(9)), "big", signed=True)

    def text(self) -> str:
        """Text of up to five pieces: raw bytes, or characters that break text rules, repeated up to 5,000 times."""
        parts = []
        for _ in range(self.below(6)):
            choice = self.byte()
            if choice >= 200:
                part = self.take(choice - 200).decode("utf-8", "replace")
            else:
                part = _PIECES[choice % len(_PIECES)]
            parts.append(part * self.pick(_REPEATS))
        return "".join(parts)


def sized(data: bytes) -> bytes:
    """`data` in the form that `DataProvider.sized` takes, for seeds."""
    return len(data).to_bytes(2, "big") + data
