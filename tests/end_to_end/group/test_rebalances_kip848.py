"""Members join, leave, die and freeze under KIP-848, the protocol in which the broker assigns the partitions."""

from __future__ import annotations

import pytest

from tests.end_to_end.group.members import KIP_848
from tests.end_to_end.group.rebalances import Rebalances

pytestmark = [pytest.mark.kafka, pytest.mark.real_kafka]


class TestKip848(Rebalances):
    """All of `Rebalances`."""

    protocol = KIP_848
