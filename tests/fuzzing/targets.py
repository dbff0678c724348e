"""The targets: one function each that takes bytes, gives them to the product, and asserts what must hold.

A target may raise `AssertionError` only, and that is a finding; so is every other exception, a run out of time or
out of memory. What the product may raise for bad input is caught here, by name. Each is deterministic: what an
earlier input left behind (a cache, a known schema) changes nothing.

How an input is laid out is each target's own, read by `provider.DataProvider`; `seeds` writes real inputs in these
layouts. To add a target: a function in `records`, `fast_path`, `schemas`, `servers` or beside them, a line in
`TARGETS`, seeds in `seeds`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.fuzzing import fast_path, records, schemas, servers, stores

TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "decode": records.decode,
    "convert": records.convert,
    "fast_path": fast_path.fast_path,
    "schemas": schemas.schemas,
    "explain": records.explain,
    "answers": servers.answers,
    "registry": servers.registry,
    "offset_map": servers.offset_map,
    "key_store": stores.key_store,
}
