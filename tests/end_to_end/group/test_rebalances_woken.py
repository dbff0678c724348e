"""A frozen member continues while the broker is silent: it must not rely on what it remembers of its
partitions.

Under the classic protocol librdkafka knows the session time-out and gives up by its own clock; under KIP-848 only the
broker knows it. The broker is the module's own, because it is stopped for a moment.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.end_to_end.api import Api
from tests.end_to_end.group.members import COOPERATIVE, KIP_848, Protocol, until_each_delivers, until_quiet
from tests.end_to_end.group.rebalances import staged
from tests.support.kafka.broker import RealBroker
from tests.support.kafka.harness import Kafka


@pytest.mark.parametrize(
    "protocol",
    [
        pytest.param(
            COOPERATIVE, id="cooperative", marks=pytest.mark.slow("the client's own clock judges here")
        ),
        pytest.param(KIP_848, id="kip-848"),
    ],
)
def test_woken_before_the_broker(own_kafka: RealBroker, api: Api, tmp_path: Path, protocol: Protocol) -> None:
    """Away past the session time-out, and nobody to tell it so: it sends nothing before it has heard.

    Its calls come home, so it could send what is queued; but that is another member's by now.
    """
    kafka = Kafka(own_kafka.bootstrap_servers, "real")
    with staged(kafka, api, tmp_path, protocol, seed=35) as scene:
        group = scene.group
        victim, other = group.join(2)
        group.until_divided(victim, other)
        scene.strike(signal.SIGSTOP, victim)
        group.until_divided(other)
        group.until_moving()
        own_kafka.pause()
        try:
            scene.wake(victim)
            until_quiet(victim)
        finally:
            own_kafka.resume()
        group.until_divided(victim, other)
        until_each_delivers(victim, other)
        scene.finish(victim, other)
