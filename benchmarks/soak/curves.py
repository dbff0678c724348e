"""A curve as text: columns of block characters above an axis, zero at the bottom, so that flat looks flat."""

from __future__ import annotations

from collections.abc import Sequence

_BLOCKS = " ▁▂▃▄▅▆▇█"
_STEPS = len(_BLOCKS) - 1


def plot(
    values: Sequence[float], positions: Sequence[float], *, width: int, height: int, top: float
) -> list[str]:
    """`height` lines of `width` columns, the highest line first; `top` is what the uppermost edge stands for.

    A column shows the most of the values whose position (0 to 1) falls into it, so that no peak is hidden; a column
    without any repeats the one before.
    """
    columns: list[float | None] = [None] * width
    for value, position in zip(values, positions, strict=True):
        at = min(width - 1, int(position * width))
        columns[at] = max(value, columns[at] or 0.0)
    heights, before = [], 0.0
    for column in columns:
        before = before if column is None else column
        heights.append(_eighths(before, height, top))
    return [
        "".join(_BLOCKS[min(_STEPS, max(0, eighths - line * _STEPS))] for eighths in heights)
        for line in reversed(range(height))
    ]


def _eighths(value: float, height: int, top: float) -> int:
    """How many eighths of a line a value fills; a value above zero fills at least one."""
    if value <= 0 or top <= 0:
        return 0
    return max(1, min(height * _STEPS, round(value / top * height * _STEPS)))
