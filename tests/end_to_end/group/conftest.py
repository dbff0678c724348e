"""The fixture that begins a rollout."""

from tests.end_to_end.group.rollouts import rollout

__all__ = ["rollout"]
