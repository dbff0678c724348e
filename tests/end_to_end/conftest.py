"""Fixtures of the end-to-end tests: an API for each test, whose payloads are all checked after the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.end_to_end.api import Api, Loop


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
