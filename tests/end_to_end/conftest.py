"""Fixtures of the end-to-end tests: an API for each test, whose payloads are all checked after the test."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.end_to_end.api import Api, Loop, Registry
from tests.end_to_end.shop import NewShop, Shop
from tests.support.kafka.harness import Kafka


@pytest.fixture(scope="session")
def servers() -> Iterator[Loop]:
    """The thread in which the tests' servers run."""
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def api(servers: Loop) -> Iterator[Api]:
    """A sandbox without faults; after the test every payload is checked against the platform's description."""
    with Api(servers) as server:
        yield server
    server.check_payloads()


@pytest.fixture
def shop_type() -> type[Shop]:
    """The class of shops; a folder or file may have one of its own."""
    return Shop


@pytest.fixture
def new_shop(shop_type: type[Shop], kafka: Kafka, api: Api, tmp_path: Path) -> NewShop:
    """``new_shop(partitions=1, PINSTREAM_LINGER="1s")``: see `Shop`."""
    return partial(shop_type, kafka, api, tmp_path)


@pytest.fixture
def shop(new_shop: NewShop) -> Shop:
    """A shop without settings of its own."""
    return new_shop()


@pytest.fixture
def registry(servers: Loop) -> Iterator[Registry]:
    """A registry without faults or schemas."""
    with Registry(servers) as one:
        yield one
