"""When the certificates end with which this process shows who it is.

Theory of operation. Python's standard library reads no X.509, except of a connection, and none of our dependencies does
by itself. One field is needed: ``notAfter``, which stands at a fixed place of a certificate's DER (RFC 5280, 4.1)::

    Certificate ::= SEQUENCE { tbsCertificate, … }
    TBSCertificate ::= SEQUENCE { [0] version OPTIONAL, serialNumber, signature, issuer, validity, … }
    Validity ::= SEQUENCE { notBefore, notAfter }
"""

from __future__ import annotations

import contextlib
import re
import ssl
from calendar import timegm
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import gmtime, strftime, strptime
from typing import Final

_PEM: Final = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VERSION: Final = 0xA0
# Tags of the two forms of a time, and how many digits a year has in each.
_YEARS: Final = {0x17: 2, 0x18: 4}


def client_certificate(config: Mapping[str, object]) -> tuple[str, int] | None:
    """Return which property of a client of Kafka or of the registry has its certificate, and when that ends. None: it
    has none, or it cannot be read; what is inside of a keystore is not."""
    for name in ("ssl.certificate.location", "ssl.certificate.pem"):
        given = str(config.get(name, ""))
        with contextlib.suppress(OSError):
            pem = Path(given).read_text("ascii", "replace") if name.endswith("location") and given else given
            if (ends := ends_at(pem)) is not None:
                return name, ends
    return None


def date(ends: float) -> str:
    """Return a time as a message has it."""
    return strftime("%Y-%m-%d %H:%M UTC", gmtime(ends))


def ends_at(pem: str) -> int | None:
    """Return when the first certificate ends, which is the client's own, in seconds since 1970. None: there is none, or
    it cannot be read."""
    found = _PEM.search(pem)
    try:
        return None if found is None else _not_after(ssl.PEM_cert_to_DER_cert(found[0]))
    except (ValueError, IndexError, StopIteration):
        return None


def _not_after(der: bytes) -> int:
    [(_, certificate)] = _parts(der)
    _, fields = next(_parts(certificate))
    _, _, _, (_, validity), *_ = (one for one in _parts(fields) if one[0] != _VERSION)
    _, (tag, written) = _parts(validity)
    digits, text = _YEARS[tag], written.decode("ascii")
    if digits == 2:  # RFC 5280, 4.1.2.5.1
        text = ("20" if text < "50" else "19") + text
    return timegm(strptime(text, "%Y%m%d%H%M%SZ"))


def _parts(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each value, one after the other."""
    at = 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size]), at + size
        if at + length > len(der):
            raise ValueError("it ends in the middle of a value")
        yield tag, der[at : at + length]
        at += length
