"""Keep this machine's own AWS settings, and tokens of earlier tests, from every test here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from consumer.adapters.aws import msk

_NAMES = (
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_SESSION_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_ROLE_ARN",
)


@pytest.fixture(autouse=True)
def no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Remove credentials and region, and disable the instance's metadata."""
    for name in _NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    msk.tokens_of.cache_clear()
    yield
    msk.tokens_of.cache_clear()
