"""Reads the client's messages: compiled, or in plain Python if there was no C compiler or the client is another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consumer.adapters.kafka.native.plain import gather
else:
    try:
        from consumer.adapters.kafka.native._messages import gather
    except ModuleNotFoundError:  # built without a compiler
        from consumer.adapters.kafka.native.plain import gather

__all__ = ["gather"]
