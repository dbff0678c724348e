"""The key store and the schema registry of a world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from consumer.engine.claims import dedup_key
from consumer.engine.messages import SchemaFound, SchemaMissing, SchemaUnavailable
from consumer.engine.model import REAL_API, SchemaRef
from tests.simulation.records import LATE, MADE_UP, MISSING
from tests.simulation.truth import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World


class KeyStore:
    """Delivered keys and when they were stored; it survives the processes that use it."""

    def __init__(self, world: World) -> None:
        self._world = world
        # All of it went to another destination once (README's own way: a sandbox first): that must mean nothing here.
        self._stored_at: dict[bytes, float] = {
            dedup_key(spec.account, "checkout", spec.event_id, REAL_API): world.now for spec in world.specs
        }

    def look_up(self, keys: Sequence[bytes]) -> list[bool] | None:
        """Per key, whether it was stored within the window; None: it does not answer."""
        world = self._world
        if world.in_spell("keys") or world.roll(world.rates.look_up_fails):
            return None
        return [self._find(key) for key in keys]

    def _find(self, key: bytes) -> bool:
        world = self._world
        at = self._stored_at.get(key)
        if (
            at is not None
            and at + world.knobs.window > world.now
            and not world.roll(world.rates.store_forgets)
        ):
            return True
        # Expired or forgotten: the next one is new. Or two members each hold a record of this key, and neither knows.
        apart = world.truth.shared if world.knobs.own_stores else world.truth.spread
        if at is not None or (key in apart and world.knobs.members > 1):
            world.truth.excuse([key])
        return False

    def store(self, keys: Sequence[bytes]) -> bool:
        """Whether the caller is told of success; what was written is another matter."""
        world = self._world
        for key in keys:
            if not world.truth.accepted[key]:
                raise Violation("a key is stored after delivery", f"{key.hex()} was not accepted")
        if not (world.in_spell("keys") or world.roll(world.rates.store_fails)):
            self._write(keys)
            return True
        self._write(keys[: world.random.choice((0, 0, len(keys) // 2, len(keys)))])
        return False

    def _write(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._stored_at[key] = self._world.now
            self._world.truth.store_key(key)


class Registry:
    """Knows all schemas but those that are made up, and some late."""

    def __init__(self, world: World) -> None:
        self._world = world

    def find(self, ref: SchemaRef) -> SchemaFound | SchemaMissing | SchemaUnavailable:
        """Its answer now."""
        world = self._world
        if world.in_spell("registry") or world.roll(world.rates.registry_fails):
            return SchemaUnavailable(ref, "timeout")
        lags = ref in LATE and world.now < world.base + world.knobs.registry_lag
        if ref == MISSING or int(ref.value) >= MADE_UP or lags:
            return SchemaMissing(ref)
        return SchemaFound(ref, world.form.schema(ref))
