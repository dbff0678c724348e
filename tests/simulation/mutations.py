"""All deliberate bugs, by name: the simulation must catch each of them."""

from tests.simulation import (
    mutations_books,
    mutations_calls,
    mutations_guard,
    mutations_reading,
    mutations_waiting,
)
from tests.simulation.mutating import MUTATIONS, Mutation

__all__ = [
    "MUTATIONS",
    "Mutation",
    "mutations_books",
    "mutations_calls",
    "mutations_guard",
    "mutations_reading",
    "mutations_waiting",
]
