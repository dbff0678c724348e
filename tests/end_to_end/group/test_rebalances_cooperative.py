"""Members join, leave, die and freeze under the classic protocol, cooperative-sticky: only partitions that move
are revoked."""

from __future__ import annotations

import pytest

from tests.end_to_end.group.members import COOPERATIVE
from tests.end_to_end.group.rebalances import Rebalances

pytestmark = [pytest.mark.kafka, pytest.mark.real_kafka]


class TestCooperative(Rebalances):
    """All of `Rebalances`."""

    protocol = COOPERATIVE
