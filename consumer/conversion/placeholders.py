"""Values that are omitted because no shopper has them, each with its reason.

Theory of operation. Producers fill a field that has no value with something: the word for "no value" of their language,
a zero, the address of their own proxy, the first day of a calendar. Sent as a hash, such a value matches no shopper, or
thousands at once. So it is omitted, with a warning. The rules (`normalise`, `rules`) use these lists; the compiled
module reads them when it is loaded (`native/_canonical.pxi`).

A value belongs here only if almost all records that have it mean "no value". A shopper who is really named Null loses
that one field, and is matched by the others.
"""

from __future__ import annotations

from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final

# In lower case. None has a digit from 1 to 9, so that an id with one need not be looked up.
NO_VALUE: Final = frozenset(
    {
        *("null", "<null>", "(null)", "[null]"),  # JSON, SQL and Java; XML exports; Objective-C; lists
        *("none", "nil", "nan"),  # Python; Ruby, Go and Swift; JavaScript and pandas
        *("undefined", "[object object]"),  # JavaScript: a missing property; an object taken for text
        *("n/a", "#n/a", "(not set)"),  # forms; Excel; Google Analytics
        *("unknown", "anonymous"),  # shops: a guest
    }
)
# Words that are also names of people or cities: Nan Goldin, Nil Yalter; Nan in Thailand.
_REAL_NAMES: Final = frozenset({"nan", "nil"})
NAMES: Final = NO_VALUE - _REAL_NAMES
"""The words that are omitted where the name of a person or a city is expected."""

# Codes of ISO 4217 that name no currency: for transactions without one, and for tests.
NO_CURRENCIES: Final = frozenset({"XXX", "XTS"})

# For an unknown birthday, databases write a day of the year 1, or the first day of 1900. No shopper is that old.
FIRST_BIRTH_YEAR: Final = 1901
# The year in which this list was made. It need not follow the calendar: small children do not shop.
LAST_BIRTH_YEAR: Final = 2026

# Networks whose addresses no shopper has as seen from the internet. (Those for documentation are not here: examples and
# tests use them, and no proxy does.)
NETWORKS: Final = tuple(
    map(
        ip_network,
        (
            *("0.0.0.0/8", "::/128"),  # this host, RFC 1122, RFC 4291
            *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),  # private, RFC 1918, RFC 4193
            "100.64.0.0/10",  # behind a carrier's translation, RFC 6598
            *("127.0.0.0/8", "::1/128"),  # loopback
            *("169.254.0.0/16", "fe80::/10"),  # link-local
            *("224.0.0.0/4", "ff00::/8"),  # multicast
            "240.0.0.0/4",  # reserved, with the broadcast address
        ),
    )
)


def is_zero_id(text: str) -> bool:
    """Return whether an id is only zeros and dashes: 0, or the all-zero UUID."""
    return not text.strip("0-")


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether a shopper may have this address on the internet."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return not any(address in network for network in NETWORKS if network.version == address.version)


# Two of them also as JavaScript spells them.
_ZERO_ID = "00000000-0000-0000-0000-000000000000"
_HASHED: Final = ("", "0", _ZERO_ID, _ZERO_ID.replace("-", ""), *NO_VALUE, "NaN", "[object Object]")

DIGESTS: Final = {
    sha256(form.encode()).hexdigest(): form
    for text in _HASHED
    for form in (text, text.upper(), text.capitalize())
} | {"0" * 64: ""}
"""SHA-256 of each such value -> the value. Producers that hash their data themselves hash these, too."""
