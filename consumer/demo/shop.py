"""The data of the fictional shop: cities and names of its shoppers, and its products.

Only `generator` uses it. Names are common in each country, and cities are real (with accents, blanks, apostrophes and
hyphens to normalise). No data can reach a real person: e-mail domains and IP addresses are reserved for documentation
(RFC 2606, 5737, 3849), and phone numbers are from ranges reserved for fiction where a country has one.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final, NamedTuple


class City(NamedTuple):
    """A city as it appears in a shop's records; the form of `state` varies."""

    city: str
    state: str | None
    postal_code: str


class Market(NamedTuple):
    """A country that the shop sells to."""

    country: str
    language: str
    currency: str
    digits: int  # decimal places of the currency (ISO 4217)
    price_factor: Decimal  # factor for a product's base price
    domain: str
    phone: str  # prefix of phone numbers; six digits follow
    women: tuple[str, ...]
    men: tuple[str, ...]
    last_names: tuple[str, ...]
    cities: tuple[City, ...]


class Product(NamedTuple):
    """A product; `price` is in the base currency, before any discount."""

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
            City("San Francisco", "CA", "94110"), City("Boston", "Massachusetts", "02118"),
            City("St. Louis", "US-MO", "63101"), City("New York", "NY", "10001-1234"),
            City("Coeur d'Alene", "Idaho", "83814"),
        ),
    ),
    Market(
        "CA", "fr", "CAD", 2, Decimal("1.35"), "boutique.example.com", "+1 555 02",
        ("Chloé", "Océane", "Emily"), ("Étienne", "Jean-Luc", "Noah"), ("Tremblay", "Gagnon", "MacDonald"),
        (
            City("Montréal", "QC", "H2X 1Y4"), City("Toronto", "CA-ON", "M5V 2T6"),
            City("Trois-Rivières", "Quebec", "G9A 5H7"),
        ),
    ),
    Market(
        "GB", "en", "GBP", 2, Decimal("0.80"), "uk.example.com", "+44 7700 900",
        ("Amelia", "Isla", "Poppy"), ("Oliver", "Harry", "Alfie"), ("Taylor", "Ap Rhys", "Fitz-Gerald"),
        (City("Stoke-on-Trent", None, "ST1 1AA"), City("London", None, "SW1A 2AA")),
    ),
    Market(
        "DE", "de", "EUR", 2, Decimal("0.95"), "laden.example.net", "+49 30 23125",
        ("Anna", "Jürgen-Marie", "Käthe"), ("Jürgen", "Björn", "Maximilian"), ("Müller", "Groß", "von der Heide"),
        (City("München", None, "80331"), City("Frankfurt (Oder)", None, "15230"), City("Berlin", None, "10115")),
    ),
    Market(
        "FR", "fr", "EUR", 2, Decimal("0.95"), "boutique.example.org", "+33 1 99 00",
        ("Camille", "Anaïs", "Marie-Thérèse"), ("François", "Loïc", "Théo"), ("Lefèvre", "D'Artagnan", "Dubois"),
        (City("L'Haÿ-les-Roses", None, "94240"), City("Aix en Provence", None, "13100")),
    ),
    Market(
        "BR", "pt", "BRL", 2, Decimal("5.40"), "loja.example.com", "+55 11 9555",
        ("Júlia", "Conceição", "Ana Clara"), ("João", "Luís", "Antônio"), ("da Silva", "Gonçalves", "Araújo"),
        (City("São Paulo", "SP", "01310-100"), City("Florianópolis", "SC", "88010-000")),
    ),
    Market(
        "JP", "ja", "JPY", 0, Decimal("150"), "mise.example.net", "+81 3 5550",
        ("さくら", "陽菜"), ("翔太", "健"), ("佐藤", "鈴木", "高橋"),
        (City("東京", None, "100-0001"), City("大阪市", None, "530-0001")),
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
