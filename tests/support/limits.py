"""How late a machine with other things to do may be."""

from __future__ import annotations

from typing import Final

LATE: Final = 15.0
"""Seconds beyond what a limit of the product says. What the tests look for takes far longer than that, or for ever."""
