"""Members join, leave, die and freeze under the classic protocol, eager: a rebalance revokes all partitions of
all members."""

from __future__ import annotations

import pytest

from tests.end_to_end.group.members import EAGER
from tests.end_to_end.group.rebalances import Rebalances

pytestmark = [pytest.mark.kafka, pytest.mark.real_kafka]


class TestEager(Rebalances):
    """All of `Rebalances`."""

    protocol = EAGER
