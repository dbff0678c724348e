"""The second third of the deliberate bugs; see `test_mutations`."""

from __future__ import annotations

import pytest

from tests.simulation.mutations.test_mutations import NAMES, check_caught


@pytest.mark.parametrize("name", NAMES[1::3])
def test_the_simulation_catches_this_bug(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 300 seeds some invariant fails."""
    check_caught(name, monkeypatch)
