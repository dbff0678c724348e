"""A complete environment for the tests of the settings, and the outcome of changes to it."""

from __future__ import annotations

import pytest

from consumer.errors import SettingsError
from consumer.settings import Settings, load

COMPLETE = {
    "HOME": "/home/shop",
    "KAFKA_BOOTSTRAP_SERVERS": "kafka-1:9092,kafka-2:9092",
    "KAFKA_TOPICS": "orders",
    "PINTEREST_AD_ACCOUNT_ID": "549755885175",
    "PINTEREST_ACCESS_TOKEN": "pina_hush",
}


def with_(**variables: str) -> Settings:
    """A complete environment with these variables on top."""
    return load(COMPLETE | variables)


def refused(**variables: str) -> str:
    """The message that refuses a complete environment with these variables on top."""
    with pytest.raises(SettingsError) as caught:
        with_(**variables)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message
