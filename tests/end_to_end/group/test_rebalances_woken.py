"""A frozen member continues while the broker is silent: it must not rely on what it remembers of its
partitions.

Under the classic protocol librdkafka knows the session time-out and gives up by its own clock; under KIP-848 only the
broker knows it.
"""

from __future__ import annotations

import pytest

from tests.end_to_end.group.members import COOPERATIVE, KIP_848
from tests.end_to_end.group.rebalances import Woken

pytestmark = [pytest.mark.kafka, pytest.mark.real_kafka]


class TestCooperativeWoken(Woken):
    """`Woken`, cooperative."""

    protocol = COOPERATIVE


class TestKip848Woken(Woken):
    """`Woken`, KIP-848."""

    protocol = KIP_848
