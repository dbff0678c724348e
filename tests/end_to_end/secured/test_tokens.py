"""Tokens end while the service runs: it gets new ones, and waits while there are none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.api import Api
from tests.end_to_end.secured.commands import LIFETIME, USER, outlives_its_tokens
from tests.support.kafka.secured import Issuer, SecuredBroker, environment


@pytest.fixture
def issuer(secured_kafka: SecuredBroker) -> Iterator[Issuer]:
    """Issues tokens that live for a few seconds."""
    found = Issuer(secured_kafka.signer, LIFETIME)
    yield found
    found.close()


@pytest.mark.slow("waits for the ends of tokens")
def test_tokens_end_and_the_endpoint_is_away(
    secured_kafka: SecuredBroker, issuer: Issuer, api: Api, tmp_path: Path
) -> None:
    """An idle service outlives its tokens; while it can get no token it says so, stays, and loses nothing."""
    outlives_its_tokens(
        secured_kafka,
        issuer,
        api,
        tmp_path,
        environment(secured_kafka.with_token(issuer.url, USER)),
        fails=(401, b'{"error": "invalid_client"}'),
        said="OAUTHBEARER token",
    )
