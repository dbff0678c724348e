"""Which value of a commerce event becomes which field of a conversion event.

Theory of operation. A `Mapping` is the result of a mapping file's tables for one record type, on one topic or on all:
checked against the API and the schema (`loading`), complete, and never changed. The executors follow it
(`fields.Description`) without further checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from consumer.avro.paths import ITEMS, Asked, Path
from consumer.conversion.computed.expressions import Expression, array_of, asked_by
from consumer.conversion.targets import (
    CONTENTS,
    EVENT_NAMES,
    EXTERNAL_ID_AS_WRITTEN,
    TARGETS,
    MaxAge,
    Target,
    phone_target,
)


@dataclass(frozen=True, slots=True)
class Mapping:
    """A checked mapping. Make it with `sections.load_sections`, and do not change its contents."""

    event_names: dict[str, str]  # event type, exact -> conversion name or `FILTER`
    # Event names that the advertiser registered, sent as they are; an event type of such a name needs no line.
    own_events: tuple[str, ...]
    unknown_event_name: str  # ``refuse``, ``custom`` or ``filter``
    action_sources: dict[str, str]  # channel, lower case -> action source
    sources: dict[str, Expression]  # target name -> its source, in payload order
    proposed: frozenset[str]  # sources that only the default names
    # Target name -> the JSON value that is sent if the record has none, in payload order.
    constants: dict[str, Any]
    # An event is sent only if this is true; None: the producer is responsible for it.
    consent: Expression | None
    dedup_key: Expression | None  # source of an event's key within account and name; None: ``event_id``
    external_id_case: str  # ``lower`` or ``as_written``
    phone_country_code: str  # country code for phone numbers without one; empty: none
    time_unit: str  # unit of a time whose schema type has none, a key of `TIME_UNITS`
    # The lists of which the first that has elements gives the items; none: the items are of one list, or the event.
    item_lists: tuple[Path, ...]
    click_id_from_url: bool  # whether a missing click id is taken from the page's address
    max_age: MaxAge

    @property
    def known_event_names(self) -> frozenset[str]:
        """Return all names that events may be sent under."""
        return EVENT_NAMES.union(self.own_events)

    def target(self, name: str) -> Target:
        """Return the target called `name`, with the rule that this mapping's settings choose."""
        if name == "user_data.external_id" and self.external_id_case == "as_written":
            return EXTERNAL_ID_AS_WRITTEN
        if name == "user_data.ph" and self.phone_country_code:
            return phone_target(self.phone_country_code)
        return TARGETS[name]

    @property
    def asked(self) -> Asked:
        """Return the paths of all values that are read from a record."""
        sources = (*self.sources.values(), self.consent, self.dedup_key)
        asked = (path for source in sources if source is not None for path in asked_by(source))
        lists = self.item_lists
        return tuple(
            dict.fromkeys((*lists[int(path[2])], *path[3:]) if path[0] == ITEMS else path for path in asked)
        )

    @property
    def item_steps(self) -> Path:
        """Return the steps to the array whose elements are the items; empty: the event itself is the one item."""
        return item_steps_of(self.sources)


def item_steps_of(sources: dict[str, Expression]) -> Path:
    """Return the steps to the array that these fields of the items come from; empty: none."""
    arrays = (array_of(source) for name, source in sources.items() if name.startswith(CONTENTS))
    return next((array for array in arrays if array is not None), ())
