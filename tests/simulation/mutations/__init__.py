"""All deliberate bugs, by name: the simulation must catch each of them."""

from tests.simulation.mutations import books, calls, guard, quota, reading, receipts, sharing, waiting
from tests.simulation.mutations.mutating import MUTATIONS, Mutation

__all__ = [
    "MUTATIONS",
    "Mutation",
    "books",
    "calls",
    "guard",
    "quota",
    "reading",
    "receipts",
    "sharing",
    "waiting",
]
