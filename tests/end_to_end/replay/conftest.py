"""Shops whose records can be placed."""

from __future__ import annotations

import pytest

from tests.end_to_end.replay.replaying import ReplayShop


@pytest.fixture
def shop_type() -> type[ReplayShop]:
    """See `tests.end_to_end.conftest`."""
    return ReplayShop
