"""Proxy and certificate authorities for the token requests that librdkafka makes itself.

librdkafka fetches Kafka's tokens (OIDC) with its own curl. curl reads the proxy from the environment only, so
`curl_environment` puts a password from a file there. The certificate authorities are a property. Its default is a file
that Debian does not have, so `token_authorities` sets it to what all other clients here trust.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit

from pydantic import SecretStr

from consumer.settings.fields import Settings
from consumer.settings.passthrough import read_secret_file
from consumer.settings.values import SecretFile

# Their names may be in small letters, which programs prefer: Python, and curl, which knows http_proxy in no other form.
EITHER_CASE = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
# What other programs use too: not ours to judge where nothing leaves this machine.
SHARED = (*EITHER_CASE, "SSL_CERT_FILE")
_ENDPOINT = "sasl.oauthbearer.token.endpoint.url"
_HTTPS_CA = ("https.ca.location", "https.ca.pem")


def authority_problems(settings: Settings) -> Iterator[str]:
    """Yield what is wrong with the files of authorities."""
    for name, path in (
        ("PINSTREAM_CA_FILE", settings.pinstream.ca_file),
        ("SSL_CERT_FILE", settings.network.ssl_cert_file),
    ):
        if path is None:
            continue
        try:
            # Only OpenSSL knows what it accepts as a certificate.
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except (ssl.SSLError, ValueError):  # no certificate, or no path at all
            yield f"{name}={str(path)!r}: has no certificate; it must have those of the authorities to trust (PEM)"
        except OSError as error:
            why = error.strerror
            yield f"{name}={str(path)!r}: cannot be read ({why}); name a PEM file with the authorities to trust"


def login(settings: Settings) -> str | None:
    """User and password of the proxy as they are now, ``user:password``. Raises `SettingsError`."""
    given = settings.pinstream.proxy_credentials
    if isinstance(given, SecretFile):
        return read_secret_file(*given).strip()
    return None if given is None else given.get_secret_value()


def curl_environment(settings: Settings) -> Mapping[str, str]:
    """Return the variables that librdkafka's curl needs, with the login for the proxy in them."""
    if _ENDPOINT not in settings.kafka.properties:
        return {}
    found, words = {}, login(settings)
    for name, proxy in (
        ("https_proxy", settings.network.https_proxy),
        ("http_proxy", settings.network.http_proxy),
    ):
        parts = urlsplit(proxy.get_secret_value())
        if parts.netloc:
            user, _, password = (words or "").partition(":")
            # curl decodes user and password of the URL. These replace any that the URL already has.
            shown = f"{quote(user, safe='')}:{quote(password, safe='')}@" if words else ""
            kept = parts.netloc.rpartition("@")[2] if words else parts.netloc
            found[name] = f"{parts.scheme}://{shown}{kept}"
    return found


def token_authorities(settings: Settings) -> Mapping[str, SecretStr]:
    """Return the property that names the authorities that librdkafka trusts for tokens; empty if it needs none."""
    given = settings.kafka.client_properties()
    if not given.get(_ENDPOINT, "").startswith("https:") or given.keys() & {*_HTTPS_CA}:
        return {}
    # What Python's clients trust by default, so that all clients of this process trust the same.
    system = ssl.get_default_verify_paths()
    bundle = settings.network.ssl_cert_file or system.cafile
    if bundle is not None:
        files = [Path(bundle)]
    else:
        # In a folder each certificate has a name by which OpenSSL finds it; what has other names is there twice.
        files = sorted(Path(system.capath).glob("*.[0-9]")) if system.capath is not None else []
    if settings.pinstream.ca_file is not None:
        files.append(settings.pinstream.ca_file)
    texts = [path.read_text("utf-8", "replace") for path in files if os.path.isfile(path)]
    return {"https.ca.pem": SecretStr("\n".join(texts))} if texts else {}
