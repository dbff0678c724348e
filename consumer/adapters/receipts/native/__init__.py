"""Receipts of many events at once, compiled; None if the package was built without a C compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

encode: Callable[..., Any] | None
if TYPE_CHECKING:
    encode = None
else:
    try:
        from consumer.adapters.receipts.native._receipts import encode
    except ModuleNotFoundError:
        encode = None

__all__ = ["encode"]
