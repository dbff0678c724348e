"""How late a busy machine may be."""

from __future__ import annotations

from typing import Final

LATE: Final = 15.0
"""Seconds beyond a limit of the product. The faults that tests look for take far longer, or never end."""
