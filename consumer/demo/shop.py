"""The made-up shop: where its shoppers live, what they are called, what it sells.

Data for `generator`, nothing else. Names are common ones of each country, places are real (they must survive
normalisation: accents, blanks, apostrophes, hyphens), and everything that could reach a person cannot: e-mail
domains and addresses are those reserved for documentation (RFC 2606, 5737, 3849), phone numbers from ranges
set aside for fiction where a country has one.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final, NamedTuple


class Place(NamedTuple):
    """A city as a shop's records have it: `state` in whatever form is usual there."""

    city: str
    state: str | None
    postal_code: str


class Market(NamedTuple):
    """One country the shop sells to."""

    country: str
    language: str
    currency: str
    digits: int
    """Decimal places of the currency (ISO 4217)."""
    price_factor: Decimal
    """What a product's base price is multiplied with."""
    domain: str
    phone: str
    """Prefix; six digits follow."""
    women: tuple[str, ...]
    men: tuple[str, ...]
    last_names: tuple[str, ...]
    places: tuple[Place, ...]


class Product(NamedTuple):
    """One article; `price` is in the base currency, before discount."""

    sku: str
    name: str
    category: str
    brand: str
    price: Decimal


MARKETS: Final = (
    Market(
        "US", "en", "USD", 2, Decimal("1.00"), "shop.example.com", "+1 555 01",
        ("Olivia", "Emma", "Ava Grace", "Sophia", "Mary-Kate"),
        ("Liam", "Noah", "James", "De'Andre", "William"),
        ("Smith", "Johnson", "O'Brien", "Garcia", "Washington-Lee"),
        (
            Place("San Francisco", "CA", "94110"), Place("Boston", "Massachusetts", "02118"),
            Place("St. Louis", "US-MO", "63101"), Place("New York", "NY", "10001-1234"),
            Place("Coeur d'Alene", "Idaho", "83814"),
        ),
    ),
    Market(
        "CA", "fr", "CAD", 2, Decimal("1.35"), "boutique.example.com", "+1 555 02",
        ("Chloé", "Océane", "Emily"), ("Étienne", "Jean-Luc", "Noah"), ("Tremblay", "Gagnon", "MacDonald"),
        (
            Place("Montréal", "QC", "H2X 1Y4"), Place("Toronto", "CA-ON", "M5V 2T6"),
            Place("Trois-Rivières", "Quebec", "G9A 5H7"),
        ),
    ),
    Market(
        "GB", "en", "GBP", 2, Decimal("0.80"), "uk.example.com", "+44 7700 900",
        ("Amelia", "Isla", "Poppy"), ("Oliver", "Harry", "Alfie"), ("Taylor", "Ap Rhys", "Fitz-Gerald"),
        (Place("Stoke-on-Trent", None, "ST1 1AA"), Place("London", None, "SW1A 2AA")),
    ),
    Market(
        "DE", "de", "EUR", 2, Decimal("0.95"), "laden.example.net", "+49 30 23125",
        ("Anna", "Jürgen-Marie", "Käthe"), ("Jürgen", "Björn", "Maximilian"), ("Müller", "Groß", "von der Heide"),
        (Place("München", None, "80331"), Place("Frankfurt (Oder)", None, "15230"), Place("Berlin", None, "10115")),
    ),
    Market(
        "FR", "fr", "EUR", 2, Decimal("0.95"), "boutique.example.org", "+33 1 99 00",
        ("Camille", "Anaïs", "Marie-Thérèse"), ("François", "Loïc", "Théo"), ("Lefèvre", "D'Artagnan", "Dubois"),
        (Place("L'Haÿ-les-Roses", None, "94240"), Place("Aix en Provence", None, "13100")),
    ),
    Market(
        "BR", "pt", "BRL", 2, Decimal("5.40"), "loja.example.com", "+55 11 9555",
        ("Júlia", "Conceição", "Ana Clara"), ("João", "Luís", "Antônio"), ("da Silva", "Gonçalves", "Araújo"),
        (Place("São Paulo", "SP", "01310-100"), Place("Florianópolis", "SC", "88010-000")),
    ),
    Market(
        "JP", "ja", "JPY", 0, Decimal("150"), "mise.example.net", "+81 3 5550",
        ("さくら", "陽菜"), ("翔太", "健"), ("佐藤", "鈴木", "高橋"),
        (Place("東京", None, "100-0001"), Place("大阪市", None, "530-0001")),
    ),
)  # fmt: skip

PRODUCTS: Final = tuple(
    Product(sku, name, category, brand, Decimal(price))
    for sku, name, category, brand, price in (
        ("00417", "Linen shirt", "clothing/shirts", "Nordlys", "49.95"),
        ("00418", "Striped shirt, long", "clothing/shirts", "Nordlys", "59.95"),
        ("TR-88", "Trail shoe", "shoes/running", "Fjell", "129.00"),
        ("TR-91", "Trail shoe “Été”", "shoes/running", "Fjell", "149.50"),
        ("mug-1", "Stoneware mug", "home/kitchen", "Tonerde", "14.90"),
        ("mug-6", "Stoneware mugs, set of six", "home/kitchen", "Tonerde", "79.00"),
        ("0001", "Gift card", "gifts", "", "25.00"),
        ("SOFA/3", "Three-seat sofa", "home/furniture", "Hygge & Sons", "1249.00"),
        ("lamp-α", "Desk lamp α", "home/lighting", "Tonerde", "89.99"),
        ("ear-2", "Silver earrings", "jewellery", "Ōmi", "34.50"),
        ("ring-7", "Moissanite ring", "jewellery", "Ōmi", "420.00"),
        ("tea-250", "Sencha, 250 g", "food/tea", "Uji", "18.75"),
        ("sample", "Free sample", "gifts", "Uji", "0.00"),
    )
)

QUERIES: Final = (
    "linen shirt", "trail shoes 42", "geschenk für mama", "canapé trois places", "tênis de corrida", "湯呑み",
    "mugs & cups", "lamp", "ring 7", "50% off",
)  # fmt: skip

BROWSERS: Final = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_6) AppleWebKit/605.1.15 (KHTML, like Gecko) Safari/605.1.15",
    "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148",
    "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Mobile Safari/537.36",
)  # fmt: skip


class Handset(NamedTuple):
    """A device as the shop's app reports it."""

    channel: str
    brand: str
    model: str
    kind: str
    os_version: str
    user_agent: str


HANDSETS: Final = (
    Handset("IOS", "Apple", "iPhone15,2", "iPhone", "17.6", "Shop/7.9 (iPhone15,2; iOS 17.6)"),
    Handset("IOS", "Apple", "iPad13,4", "iPad", "17.5", "Shop/7.9 (iPad13,4; iPadOS 17.5)"),
    Handset("ANDROID", "Samsung", "SM-S921B", "phone", "14", "Shop/7.9 (SM-S921B; Android 14)"),
    Handset("ANDROID", "Google", "Pixel 8", "phone", "14", "Shop/7.8 (Pixel 8; Android 14)"),
)
CARRIERS: Final = ("T-Mobile", "Orange", "Vivo", "NTT DOCOMO")
EMAIL_DOMAINS: Final = ("example.com", "example.org", "example.net", "mail.example")
