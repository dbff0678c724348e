"""Generated commerce events of a shop, in the shape of ``schemas/commerce_event.avsc``.

The shop has a few hundred open sessions. Each event is the next step of a random session, so the events of many
shoppers interleave as on a real topic. A session is a Python generator that goes down the funnel (page, search,
product, cart, checkout, payment) and may end at every step. About half of the sessions belong to shoppers seen before.
Shoppers use the web, the apps, or a store whose till uploads late. A guest has only an IP address and a user agent; a
customer has an e-mail address and more, some of it badly typed, so that there is something to normalise.

`duplicates` is the share of recent records that are sent again, byte for byte. `invalid` is the share of records that
must become dead letters, each with one `Defect`. Every event comes with the disposition that it must get with the
default mapping and settings, so that tests and the demo can compare sums exactly.

The same seed and the same clock give the same events. Random numbers decide everything except the time.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from enum import Enum
from typing import Any, Final, NamedTuple

from consumer.demo.shop import (
    BROWSERS,
    CARRIERS,
    EMAIL_DOMAINS,
    HANDSETS,
    MARKETS,
    PRODUCTS,
    QUERIES,
    Handset,
    Market,
    Product,
)
from consumer.engine.model import CommerceEvent, Disposition

OPEN_SESSIONS: Final = 300
KNOWN_SHOPPERS: Final = 5_000
"""Number of shoppers that the shop remembers; after that, new ones replace old ones."""
RECENT: Final = 500
"""A duplicate repeats one of this number of latest deliverable events."""
_FILTERED: Final = frozenset(("cart_viewed", "cart_item_removed", "order_refunded"))
_DAY_MS: Final = 86_400_000


class Defect(Enum):
    """What is wrong with an invalid record."""

    UNDECODABLE = "undecodable"
    """Bytes in none of the wire formats."""
    NO_IDENTITY = "no_identity"
    BAD_CURRENCY = "bad_currency"
    NEGATIVE_VALUE = "negative_value"
    GROUPED_VALUE = "grouped_value"
    UNKNOWN_TYPE = "unknown_type"
    UNKNOWN_CHANNEL = "unknown_channel"
    BLANK_EVENT_ID = "blank_event_id"
    TOO_OLD = "too_old"
    FUTURE = "future"


_DEFECTS: Final = tuple(Defect)


class GeneratedEvent(NamedTuple):
    """One record to produce: `event` is encoded with the schema; `raw` bytes are sent unchanged."""

    key: bytes
    """Identifies the shopper, so that a shopper's events stay in order."""
    event: CommerceEvent | None
    raw: bytes | None
    expected: Disposition
    """The disposition that the record must get, if records are read in the order of generation."""
    defect: Defect | None
    value: Decimal | None
    """What a delivery of the event adds to the sum of values of distinct events."""


class Shopper:
    """A shopper who may come back: their market, device and customer data."""

    __slots__ = ("customer", "handset", "key", "market", "opt_out")

    def __init__(
        self, key: str, market: Market, handset: Handset | None, customer: dict[str, Any], opt_out: bool
    ) -> None:
        self.key = key
        self.market = market
        self.handset = handset
        self.customer = customer
        self.opt_out = opt_out


class EventGenerator:
    """An endless iterator of `GeneratedEvent`. `now` returns seconds since 1970 and is called once per event.

    `duplicates` and `invalid` are shares from 0 to 1. `tally` counts the emitted records by expected disposition;
    `value_sum` is the exact sum of values of distinct deliveries.
    """

    def __init__(
        self, seed: int, now: Callable[[], float], duplicates: float = 0.0, invalid: float = 0.0
    ) -> None:
        self._random = random.Random(seed)  # noqa: S311  made-up events are not secrets
        self._now = now
        self._duplicates = duplicates
        self._invalid = invalid
        self._shoppers: deque[Shopper] = deque(maxlen=KNOWN_SHOPPERS)
        self._sessions = [self._session() for _ in range(OPEN_SESSIONS)]
        self._recent: deque[GeneratedEvent] = deque(maxlen=RECENT)
        self._orders = 0
        self.tally: Counter[Disposition] = Counter()
        self.value_sum = Decimal(0)

    def __iter__(self) -> Iterator[GeneratedEvent]:
        return self

    def __next__(self) -> GeneratedEvent:
        generated = self._draw()
        self.tally[generated.expected] += 1
        if generated.value is not None:
            self.value_sum += generated.value
        return generated

    def next_events(self, n: int) -> list[GeneratedEvent]:
        """The next `n` events."""
        return [next(self) for _ in range(n)]

    def _draw(self) -> GeneratedEvent:
        draw = self._random.random()
        if draw < self._duplicates and self._recent:
            again = self._random.choice(self._recent)
            return again._replace(expected=Disposition.DUPLICATE, value=None)
        shopper, event = self._next_step()
        if self._duplicates <= draw < self._duplicates + self._invalid:
            return self._with_defect(shopper, event)
        generated = _valid(shopper, event)
        if generated.expected is Disposition.DELIVERED:
            self._recent.append(generated)
        return generated

    def _next_step(self) -> tuple[Shopper, CommerceEvent]:
        """Return the next event of a random session; replace a session that has ended."""
        index = self._random.randrange(OPEN_SESSIONS)
        step = next(self._sessions[index], None)
        while step is None:
            self._sessions[index] = self._session()
            step = next(self._sessions[index], None)
        return step

    # Sessions

    def _session(self) -> Iterator[tuple[Shopper, CommerceEvent]]:
        shopper, new = self._shopper()
        if shopper.customer["emails"] and shopper.handset is None and self._chance(0.06):
            steps = self._at_the_till(shopper)
        else:
            steps = self._online(shopper, new)
        for event in steps:
            yield shopper, event

    def _at_the_till(self, shopper: Shopper) -> Iterator[CommerceEvent]:
        """A purchase in a store; the till uploads between a minute and five hours later."""
        event = self._event(shopper, "order_completed", channel="OFFLINE", url=None)
        event["occurred_at"] -= self._random.randrange(60_000, 18_000_000)
        event["customer"] |= {"ip_address": None, "user_agent": None, "click_id": None}
        event["order"] = self._order(shopper.market, self._basket(), paid=True, numbered=True)
        yield event
        if self._chance(0.03):
            yield self._event(shopper, "order_refunded", channel="OFFLINE", url=None)

    def _online(self, shopper: Shopper, new: bool) -> Iterator[CommerceEvent]:
        """A web or app session, from the landing page down the funnel."""
        if new and shopper.handset is not None and self._chance(0.5):
            yield self._event(shopper, "app_installed")
        yield self._event(shopper, "page_viewed")
        yield from self._arrival(shopper, new)
        while self._chance(0.75):
            yield from self._looking(shopper)
        if not self._chance(0.4):
            return
        basket = self._basket()
        yield from self._carting(shopper, basket)
        if self._chance(0.6):
            yield from self._buying(shopper, basket)

    def _arrival(self, shopper: Shopper, new: bool) -> Iterator[CommerceEvent]:
        if new and shopper.customer["emails"]:
            yield self._event(shopper, "customer_registered")
        if self._chance(0.03):
            yield self._event(shopper, "lead_created")
        if self._chance(0.02):
            yield self._event(shopper, "subscription_created")

    def _looking(self, shopper: Shopper) -> Iterator[CommerceEvent]:
        kind = self._random.choices(
            ("product_viewed", "category_viewed", "product_searched", "wishlist_item_added", "video_watched"),
            (60, 20, 14, 4, 2),
        )[0]
        event = self._event(shopper, kind)
        if kind == "product_searched":
            event["search_query"] = self._random.choice(QUERIES)
        if kind in ("product_viewed", "wishlist_item_added"):
            event["order"] = self._order(shopper.market, [(self._random.choice(PRODUCTS), 1)])
        yield event

    def _carting(self, shopper: Shopper, basket: list[tuple[Product, int]]) -> Iterator[CommerceEvent]:
        for line in basket:
            event = self._event(shopper, "cart_item_added")
            event["order"] = self._order(shopper.market, [line], paid=True)
            yield event
        if self._chance(0.5):
            yield self._event(shopper, "cart_viewed")
        if self._chance(0.1):
            yield self._event(shopper, "cart_item_removed")

    def _buying(self, shopper: Shopper, basket: list[tuple[Product, int]]) -> Iterator[CommerceEvent]:
        event = self._event(shopper, "checkout_started")
        event["order"] = self._order(shopper.market, basket, paid=True)
        yield event
        if not self._chance(0.8):
            return
        yield self._event(shopper, "payment_info_added")
        event = self._event(
            shopper, self._random.choice(("order_completed", "order_completed", "order_placed"))
        )
        event["order"] = self._order(shopper.market, basket, paid=True, numbered=True)
        yield event

    # Events

    def _event(
        self, shopper: Shopper, kind: str, *, channel: str | None = None, url: str | None = ""
    ) -> CommerceEvent:
        """A new event with the fields that all kinds share."""
        handset, market = shopper.handset, shopper.market
        online = handset is None and channel is None
        return {
            "event_id": self._uuid(),
            "event_type": kind,
            "occurred_at": int(self._now() * 1000) - self._random.randrange(8_000),
            "channel": channel or (handset.channel if handset else "WEB"),
            "page_url": self._url(market, kind) if online else None,
            "search_query": None,
            "language": market.language if self._chance(0.9) else None,
            "customer": dict(shopper.customer),
            "order": None,
            "app": None if handset is None else {"app_id": "429047995", "name": "Shop", "version": "7.9"},
            "device": None if handset is None else self._device(handset),
            "opt_out": shopper.opt_out,
            "opt_out_type": "LDP" if shopper.opt_out and market.country == "US" else None,
            "ad_account_id": None,
        }

    def _url(self, market: Market, kind: str) -> str:
        path = kind.partition("_")[0]
        tracked = "?utm_source=pinterest&pp=1" if self._chance(0.3) else ""
        return f"https://{market.domain}/{market.language}/{path}/{self._random.randrange(1000)}{tracked}"

    def _device(self, handset: Handset) -> dict[str, Any]:
        return {
            "brand": handset.brand,
            "model": handset.model,
            "type": handset.kind,
            "carrier": self._random.choice(CARRIERS) if self._chance(0.7) else None,
            "os_version": handset.os_version,
            "wifi": self._chance(0.6),
        }

    def _basket(self) -> list[tuple[Product, int]]:
        lines = self._random.choices((1, 2, 3, 5), (60, 25, 10, 5))[0]
        quantities = self._random.choices((1, 2, 6), (85, 12, 3), k=lines)
        return list(zip(self._random.sample(PRODUCTS, lines), quantities, strict=True))

    def _order(
        self,
        market: Market,
        basket: list[tuple[Product, int]],
        *,
        paid: bool = False,
        numbered: bool = False,
    ) -> dict[str, Any]:
        """An order or a part of one. `paid`: it has a total, sometimes with a discount."""
        items = [_item(market, product, quantity) for product, quantity in basket]
        total = sum((Decimal(item["price"]) * item["quantity"] for item in items), Decimal(0))
        if self._chance(0.15):
            total = _rounded(total * Decimal("0.9"), market)
        return {
            "order_id": self._order_id() if numbered else None,
            "currency": market.currency,
            "total": str(total) if paid else None,
            "items": items,
        }

    def _order_id(self) -> str:
        self._orders += 1
        return f"{self._orders:08d}"

    # Shoppers

    def _shopper(self) -> tuple[Shopper, bool]:
        """Return a known or a new shopper, and whether the shopper is new."""
        if self._shoppers and self._chance(0.5):
            return self._shoppers[self._random.randrange(len(self._shoppers))], False
        shopper = self._new_shopper()
        self._shoppers.append(shopper)
        return shopper, True

    def _new_shopper(self) -> Shopper:
        pick = self._random.choice
        market = self._random.choices(MARKETS, (40, 8, 12, 15, 10, 10, 5))[0]
        handset = pick(HANDSETS) if self._chance(0.35) else None
        key = f"{self._random.getrandbits(40):010x}"
        customer = _empty_customer() | {
            "ip_address": self._address(),
            "user_agent": pick(BROWSERS) if handset is None else handset.user_agent,
            "click_id": f"dj0y{self._random.getrandbits(96):024x}" if self._chance(0.35) else None,
            "country": market.country if self._chance(0.9) else None,
        }
        if handset is not None and self._chance(0.75):
            customer["advertising_ids"] = [self._uuid().upper() if handset.channel == "IOS" else self._uuid()]
        if self._chance(0.6):
            customer |= self._known(market, key)
        return Shopper(key, market, handset, customer, opt_out=self._chance(0.02))

    def _known(self, market: Market, key: str) -> dict[str, Any]:
        """The data of a customer with an account, typed as people type."""
        pick, woman = self._random.choice, self._chance(0.6)
        home = pick(market.cities)
        email = f"customer.{key}@{pick(EMAIL_DOMAINS)}"
        return {
            "emails": [f" {email.title()} " if self._chance(0.1) else email],
            "phones": [f"{market.phone}{self._random.randrange(10**6):06d}"] if self._chance(0.5) else [],
            "external_ids": [f"C-{key}"],
            "first_name": pick(market.women if woman else market.men),
            "last_name": pick(market.last_names),
            "gender": pick(("female", "F") if woman else ("male", "M")) if self._chance(0.4) else None,
            "birth_date": self._birth_date() if self._chance(0.3) else None,
            "city": home.city,
            "state": home.state,
            "postal_code": home.postal_code,
            "partner_id": f"ramp-{key}" if self._chance(0.05) else None,
        }

    def _birth_date(self) -> str:
        draw = self._random.randrange
        return f"{draw(1945, 2007)}-{draw(1, 13):02d}-{draw(1, 29):02d}"

    def _address(self) -> str:
        if self._chance(0.2):
            return f"2001:db8::{self._random.getrandbits(16):x}:{self._random.randrange(1, 65_536):x}"
        network = self._random.choice(("192.0.2", "198.51.100", "203.0.113"))
        return f"{network}.{self._random.randrange(1, 255)}"

    # Chance and spoiling

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _uuid(self) -> str:
        """A random version 4 UUID."""
        text = f"{self._random.getrandbits(128):032x}"
        variant = "89ab"[int(text[16], 16) & 3]
        return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"

    def _with_defect(self, shopper: Shopper, event: CommerceEvent) -> GeneratedEvent:
        """Return `event` with one random defect. It becomes an order, because defects of amounts need one."""
        defect = self._random.choice(_DEFECTS)
        if defect is Defect.UNDECODABLE:
            raw = self._broken_bytes(event)
            return GeneratedEvent(
                shopper.key.encode(), None, raw, Disposition.DEAD_LETTERED, defect, value=None
            )
        event = event | {"event_type": "order_completed"}
        event["order"] = self._order(shopper.market, self._basket(), paid=True, numbered=True)
        _MAKE_DEFECT[defect](event)
        return GeneratedEvent(
            shopper.key.encode(), event, None, Disposition.DEAD_LETTERED, defect, value=None
        )

    def _broken_bytes(self, event: CommerceEvent) -> bytes:
        """JSON on the wrong topic, or noise. The first byte never begins a wire format."""
        if self._chance(0.5):
            return b'{"event_id": "%s", "note": "not Avro"}' % event["event_id"].encode()
        return b"\xff" + self._random.randbytes(self._random.randrange(40))


def restamp(event: CommerceEvent, now_ms: int) -> CommerceEvent:
    """Return a copy of `event` with the time `now_ms` (milliseconds since 1970)."""
    return event | {"occurred_at": now_ms}


def shifted(event: CommerceEvent, by_ms: int) -> CommerceEvent:
    """Return a copy of `event` moved in time by `by_ms`."""
    return event | {"occurred_at": event["occurred_at"] + by_ms}


_LISTS: Final = ("emails", "phones", "external_ids", "advertising_ids")
_TEXTS: Final = (
    *("first_name", "last_name", "gender", "birth_date", "city", "state", "postal_code", "country"),
    *("ip_address", "user_agent", "click_id", "partner_id"),
)


def _empty_customer() -> dict[str, Any]:
    """A customer without any data."""
    return {**{name: [] for name in _LISTS}, **dict.fromkeys(_TEXTS)}


def _valid(shopper: Shopper, event: CommerceEvent) -> GeneratedEvent:
    if event["event_type"] in _FILTERED:
        return GeneratedEvent(shopper.key.encode(), event, None, Disposition.FILTERED, None, None)
    order = event["order"]
    value = Decimal(order["total"]) if order is not None and order["total"] is not None else None
    return GeneratedEvent(shopper.key.encode(), event, None, Disposition.DELIVERED, None, value)


def _item(market: Market, product: Product, quantity: int) -> dict[str, Any]:
    return {
        "sku": product.sku,
        "name": product.name,
        "category": product.category,
        "brand": product.brand or None,
        "price": str(_rounded(product.price * market.price_factor, market)),
        "quantity": quantity,
    }


def _rounded(amount: Decimal, market: Market) -> Decimal:
    return amount.quantize(Decimal(1).scaleb(-market.digits))


def _anonymise(event: CommerceEvent) -> None:
    event["customer"] |= {"emails": [], "advertising_ids": [], "ip_address": None}


def _set_order(**members: str) -> Callable[[CommerceEvent], None]:
    return lambda event: event["order"].update(members)


def _set(**members: str) -> Callable[[CommerceEvent], None]:
    return lambda event: event.update(members)


def _move(by_ms: int) -> Callable[[CommerceEvent], None]:
    return lambda event: event.update(shifted(event, by_ms))


_MAKE_DEFECT: Final[Mapping[Defect, Callable[[CommerceEvent], None]]] = {
    Defect.NO_IDENTITY: _anonymise,
    Defect.BAD_CURRENCY: _set_order(currency="ZZZ"),
    Defect.NEGATIVE_VALUE: _set_order(total="-12.00"),
    Defect.GROUPED_VALUE: _set_order(total="1,299.00"),
    Defect.UNKNOWN_TYPE: _set(event_type="order_teleported"),
    Defect.UNKNOWN_CHANNEL: _set(channel="UNKNOWN"),
    Defect.BLANK_EVENT_ID: _set(event_id="  "),
    Defect.TOO_OLD: _move(-10 * _DAY_MS),
    Defect.FUTURE: _move(_DAY_MS),
}
