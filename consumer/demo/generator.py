"""Generated commerce events of a shop, in the shape of ``schemas/commerce_event.avsc``.

The shop has a few hundred open sessions. Each event is the next step of a random session. A session is a Python
generator that goes down the funnel (page, search, product, cart, checkout, payment) and may end at every step. About
half of the sessions belong to shoppers seen before. Shoppers use the web, the apps, or a store whose till uploads late.
A guest has only an IP address and a user agent; a customer has an e-mail address and more, some of it badly typed, so
that there is something to normalise.

`duplicates` is the share of recent records that are sent again, byte for byte. `invalid` is the share of records that
must become dead letters, each with one `Defect`. Every event comes with the disposition that it must get with the
default mapping and settings, so that tests can compare sums exactly.

The same seed and the same clock give the same events. Random numbers decide everything except the time.
"""

from __future__ import annotations

import random
import tomllib
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from enum import Enum
from importlib.resources import files
from typing import Any, Final, NamedTuple

from consumer.engine.model import CommerceEvent, Disposition

OPEN_SESSIONS: Final = 300
# Number of shoppers that the shop remembers; after that, new ones replace old ones.
KNOWN_SHOPPERS: Final = 5_000
# A duplicate repeats one of this number of latest deliverable events.
RECENT: Final = 500
# What visitors do before they buy, and how often.
_BROWSING: Final = (
    ("product_viewed", "category_viewed", "product_searched", "wishlist_item_added", "video_watched"),
    (60, 20, 14, 4, 2),
)
_FILTERED: Final = frozenset(("cart_viewed", "cart_item_removed", "order_refunded"))
_DAY_MS: Final = 86_400_000


_LISTS: Final = ("emails", "phones", "external_ids", "advertising_ids")
_TEXTS: Final = (
    *("first_name", "last_name", "gender", "birth_date", "city", "state", "postal_code", "country"),
    *("ip_address", "user_agent", "click_id", "partner_id"),
)


class Market(NamedTuple):
    """A country that the shop sells to; see shop.toml."""

    country: str
    language: str
    currency: str
    digits: int
    price_factor: Decimal
    domain: str
    phone: str
    women: tuple[str, ...]
    men: tuple[str, ...]
    last_names: tuple[str, ...]
    cities: tuple[dict[str, str], ...]


class Product(NamedTuple):
    """A product; `price` is in the base currency, before any discount."""

    sku: str
    name: str
    category: str
    brand: str
    price: Decimal


class Handset(NamedTuple):
    """A device as the shop's app reports it."""

    channel: str
    brand: str
    model: str
    kind: str
    os_version: str
    user_agent: str


_SHOP: Final[dict[str, Any]] = tomllib.loads(
    files("consumer.demo").joinpath("shop.toml").read_text("utf-8"), parse_float=Decimal
)
_MARKETS: Final = [Market(**one) for one in _SHOP["markets"]]
_PRODUCTS: Final = [Product(**one) for one in _SHOP["products"]]
_HANDSETS: Final = [Handset(**one) for one in _SHOP["handsets"]]


class Defect(Enum):
    """What is wrong with an invalid record: what it sets in a part of the event ("": in the event itself), or by how
    many milliseconds it moves the event's time."""

    UNDECODABLE = None  # bytes in none of the wire formats
    NO_IDENTITY = ("customer", dict[str, Any](emails=[], advertising_ids=[], ip_address=None))
    BAD_CURRENCY = ("order", {"currency": "ZZZ"})
    NEGATIVE_VALUE = ("order", {"total": "-12.00"})
    GROUPED_VALUE = ("order", {"total": "1,299.00"})
    UNKNOWN_TYPE = ("", {"event_type": "order_teleported"})
    UNKNOWN_CHANNEL = ("", {"channel": "UNKNOWN"})
    BLANK_EVENT_ID = ("", {"event_id": "  "})
    TOO_OLD = -10 * _DAY_MS
    FUTURE = _DAY_MS


_DEFECTS: Final = tuple(Defect)


class GeneratedEvent(NamedTuple):
    """One record to produce: `event` is encoded with the schema; `raw` bytes are sent unchanged."""

    key: bytes  # identifies the shopper, so that a shopper's events stay in order
    event: CommerceEvent | None
    # The disposition that the record must get, if records are read in the order of generation.
    expected: Disposition
    raw: bytes | None = None
    defect: Defect | None = None
    value: Decimal | None = None  # what a delivery of the event adds to the sum of values of distinct events


class Shopper(NamedTuple):
    """A shopper who may come back: their market, device and customer data."""

    key: str
    market: Market
    handset: Handset | None
    customer: dict[str, Any]
    opt_out: bool


class EventGenerator(Iterator[GeneratedEvent]):
    """An endless iterator of `GeneratedEvent`. `now` returns seconds since 1970 and is called once per event.

    `duplicates` and `invalid` are shares from 0 to 1.
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

    def __next__(self) -> GeneratedEvent:
        # One draw decides both: so the shares add up.
        draw = self._random.random()
        if draw < self._duplicates and self._recent:
            again = self._random.choice(self._recent)
            return again._replace(expected=Disposition.DUPLICATE, value=None)
        # The next step of a random session, so that shoppers interleave as on a real topic. One that has ended makes
        # room for a new one.
        index = self._random.randrange(OPEN_SESSIONS)
        step = next(self._sessions[index], None)
        while step is None:
            self._sessions[index] = self._session()
            step = next(self._sessions[index], None)
        shopper, event = step
        if self._duplicates <= draw < self._duplicates + self._invalid:
            return self._with_defect(shopper, event)
        # The shopper's key keeps the events of a shopper in one partition, and so in order.
        key, order = shopper.key.encode(), event["order"]
        if event["event_type"] in _FILTERED:
            return GeneratedEvent(key, event, Disposition.FILTERED)
        value = Decimal(order["total"]) if order is not None and order["total"] is not None else None
        generated = GeneratedEvent(key, event, Disposition.DELIVERED, value=value)
        self._recent.append(generated)
        return generated

    # Sessions

    def _session(self) -> Iterator[tuple[Shopper, CommerceEvent]]:
        new = not (self._shoppers and self._chance(0.5))
        if new:
            shopper = self._new_shopper()
            self._shoppers.append(shopper)
        else:
            shopper = self._random.choice(self._shoppers)
        if shopper.customer["emails"] and shopper.handset is None and self._chance(0.06):
            steps = self._at_the_till(shopper)
        else:
            steps = self._online(shopper, new)
        for event in steps:
            yield shopper, event

    def _at_the_till(self, shopper: Shopper) -> Iterator[CommerceEvent]:
        """Yield a purchase in a store; the till uploads between a minute and five hours later."""
        event = self._event(shopper, "order_completed", in_store=True)
        event["occurred_at"] -= self._random.randrange(60_000, 18_000_000)
        # A till sees no browser.
        event["customer"] |= {"ip_address": None, "user_agent": None, "click_id": None}
        event["order"] = self._order(shopper.market, self._basket(), paid=True, numbered=True)
        yield event
        if self._chance(0.03):
            yield self._event(shopper, "order_refunded", in_store=True)

    def _online(self, shopper: Shopper, new: bool) -> Iterator[CommerceEvent]:
        """Yield a web or app session, from the landing page down the funnel."""
        if new and shopper.handset is not None and self._chance(0.5):
            yield self._event(shopper, "app_installed")
        yield self._event(shopper, "page_viewed")
        if new and shopper.customer["emails"]:
            yield self._event(shopper, "customer_registered")
        if self._chance(0.03):
            yield self._event(shopper, "lead_created")
        if self._chance(0.02):
            yield self._event(shopper, "subscription_created")
        while self._chance(0.75):
            kind = self._random.choices(*_BROWSING)[0]
            event = self._event(shopper, kind)
            if kind == "product_searched":
                event["search_query"] = self._random.choice(_SHOP["queries"])
            if kind in ("product_viewed", "wishlist_item_added"):
                event["order"] = self._order(shopper.market, [(self._random.choice(_PRODUCTS), 1)])
            yield event
        if self._chance(0.4):  # most visits end without a cart
            yield from self._buying(shopper)

    def _buying(self, shopper: Shopper) -> Iterator[CommerceEvent]:
        """Yield the way from the cart to the payment, which only some of the shoppers reach."""
        basket = self._basket()
        for line in basket:
            yield self._event(
                shopper, "cart_item_added", order=self._order(shopper.market, [line], paid=True)
            )
        if self._chance(0.5):
            yield self._event(shopper, "cart_viewed")
        if self._chance(0.1):
            yield self._event(shopper, "cart_item_removed")
        if not self._chance(0.6):
            return
        order = self._order(shopper.market, basket, paid=True)
        yield self._event(shopper, "checkout_started", order=order)
        if not self._chance(0.8):
            return
        yield self._event(shopper, "payment_info_added")
        kind = self._random.choice(("order_completed", "order_completed", "order_placed"))
        order = self._order(shopper.market, basket, paid=True, numbered=True)
        yield self._event(shopper, kind, order=order)

    # Events

    def _event(
        self,
        shopper: Shopper,
        kind: str,
        *,
        order: dict[str, Any] | None = None,
        in_store: bool = False,
    ) -> CommerceEvent:
        """Return a new event with the fields that all kinds share."""
        handset, market = shopper.handset, shopper.market
        url = device = None
        if handset is not None:
            device = {
                "brand": handset.brand,
                "model": handset.model,
                "type": handset.kind,
                "carrier": self._random.choice(_SHOP["carriers"]) if self._chance(0.7) else None,
                "os_version": handset.os_version,
                "wifi": self._chance(0.6),
            }
        elif not in_store:
            page = f"{market.language}/{kind.partition('_')[0]}/{self._random.randrange(1000)}"
            url = f"https://{market.domain}/{page}{'?utm_source=pinterest&pp=1' if self._chance(0.3) else ''}"
        return {
            "event_id": self._uuid(),
            "event_type": kind,
            # It took some seconds to get here.
            "occurred_at": int(self._now() * 1000) - self._random.randrange(8_000),
            "channel": "OFFLINE" if in_store else handset.channel if handset else "WEB",
            "page_url": url,
            "search_query": None,
            "language": market.language if self._chance(0.9) else None,
            "customer": dict(shopper.customer),  # a copy: a defect or a till changes it
            "order": order,
            "app": None if handset is None else {"app_id": "429047995", "name": "Shop", "version": "7.9"},
            "device": device,
            "opt_out": shopper.opt_out,
            "opt_out_type": "LDP" if shopper.opt_out and market.country == "US" else None,
            "ad_account_id": None,
        }

    def _basket(self) -> list[tuple[Product, int]]:
        lines = self._random.choices((1, 2, 3, 5), (60, 25, 10, 5))[0]
        quantities = self._random.choices((1, 2, 6), (85, 12, 3), k=lines)
        return list(zip(self._random.sample(_PRODUCTS, lines), quantities, strict=True))

    def _order(
        self,
        market: Market,
        basket: list[tuple[Product, int]],
        *,
        paid: bool = False,
        numbered: bool = False,
    ) -> dict[str, Any]:
        """Return an order or a part of one. `paid`: it has a total, sometimes with a discount."""
        unit = Decimal(1).scaleb(-market.digits)
        items: list[dict[str, Any]] = [
            {
                "sku": product.sku,
                "name": product.name,
                "category": product.category,
                "brand": product.brand or None,
                "price": str((product.price * market.price_factor).quantize(unit)),
                "quantity": quantity,
            }
            for product, quantity in basket
        ]
        total = sum((Decimal(item["price"]) * item["quantity"] for item in items), Decimal(0))
        if self._chance(0.15):  # a discount: the total is not the sum of the items
            total = (total * Decimal("0.9")).quantize(unit)
        self._orders += numbered
        return {
            "order_id": f"{self._orders:08d}" if numbered else None,
            "currency": market.currency,
            "total": str(total) if paid else None,
            "items": items,
        }

    # Shoppers

    def _new_shopper(self) -> Shopper:
        pick = self._random.choice
        market = self._random.choices(_MARKETS, (40, 8, 12, 15, 10, 10, 5))[0]
        handset = pick(_HANDSETS) if self._chance(0.35) else None
        key = f"{self._random.getrandbits(40):010x}"
        # These networks are reserved for documentation (RFC 3849, RFC 5737): they lead to no real person.
        if self._chance(0.2):
            address = f"2001:db8::{self._random.getrandbits(16):x}:{self._random.randrange(1, 65_536):x}"
        else:
            network = pick(("192.0.2", "198.51.100", "203.0.113"))
            address = f"{network}.{self._random.randrange(1, 255)}"
        customer: dict[str, Any] = {
            **{name: [] for name in _LISTS},
            **dict.fromkeys(_TEXTS),
            "ip_address": address,
            "user_agent": pick(_SHOP["browsers"]) if handset is None else handset.user_agent,
            "click_id": f"dj0y{self._random.getrandbits(96):024x}" if self._chance(0.35) else None,
            "country": market.country if self._chance(0.9) else None,
        }
        if handset is not None and self._chance(0.75):
            customer["advertising_ids"] = [self._uuid().upper() if handset.channel == "IOS" else self._uuid()]
        if self._chance(0.6):
            customer |= self._known(market, key)
        return Shopper(key, market, handset, customer, opt_out=self._chance(0.02))

    def _known(self, market: Market, key: str) -> dict[str, Any]:
        """Return the data of a customer with an account, spelled as people type."""
        pick, draw, woman = self._random.choice, self._random.randrange, self._chance(0.6)
        home = pick(market.cities)
        email = f"customer.{key}@{pick(_SHOP['email_domains'])}"
        return {
            # Some type it badly, so that there is something to normalise.
            "emails": [f" {email.title()} " if self._chance(0.1) else email],
            "phones": [f"{market.phone}{draw(10**6):06d}"] if self._chance(0.5) else [],
            "external_ids": [f"C-{key}"],
            "first_name": pick(market.women if woman else market.men),
            "last_name": pick(market.last_names),
            "gender": pick(("female", "F") if woman else ("male", "M")) if self._chance(0.4) else None,
            "birth_date": f"{draw(1945, 2007)}-{draw(1, 13):02d}-{draw(1, 29):02d}"
            if self._chance(0.3)
            else None,
            **home,
            "partner_id": f"ramp-{key}" if self._chance(0.05) else None,
        }

    # Chance and spoiling

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _uuid(self) -> str:
        # Not `uuid4`: the same seed must give the same ids.
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def _with_defect(self, shopper: Shopper, event: CommerceEvent) -> GeneratedEvent:
        """Return `event` with one random defect. It becomes an order, because defects of amounts need one."""
        defect, key = self._random.choice(_DEFECTS), shopper.key.encode()
        if defect is Defect.UNDECODABLE:
            # JSON on the wrong topic, or noise. The first byte never begins a wire format.
            if self._chance(0.5):
                raw = b'{"event_id": "%s", "note": "not Avro"}' % event["event_id"].encode()
            else:
                raw = b"\xff" + self._random.randbytes(self._random.randrange(40))
            return GeneratedEvent(key, None, Disposition.DEAD_LETTERED, raw, defect)
        event = event | {"event_type": "order_completed"}
        event["order"] = self._order(shopper.market, self._basket(), paid=True, numbered=True)
        if isinstance(defect.value, int):
            event["occurred_at"] += defect.value
        else:
            part, changes = defect.value
            (event[part] if part else event).update(changes)
        return GeneratedEvent(key, event, Disposition.DEAD_LETTERED, None, defect)
