"""``KAFKA_…`` and ``SCHEMA_REGISTRY_…`` variables that become properties of the Kafka and registry clients.

``KAFKA_SASL_USERNAME`` becomes librdkafka's ``sasl.username``: lower case, dots for underscores. librdkafka itself
refuses unknown properties when a client is created. This module refuses properties that would weaken the delivery
guarantee, contradict a setting of pinstream, or cannot be given as text. Passwords and keys may come from a file
(``KAFKA_SASL_PASSWORD_FILE``).

Two kinds of variables have these prefixes and are ignored: the service links that Kubernetes puts into every container
if a service is named ``kafka`` or ``pinstream`` (``KAFKA_PORT=tcp://…``), and the variables of Kafka's own shell
scripts (``KAFKA_HEAP_OPTS``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from pydantic import SecretStr

from consumer.errors import SettingsError, nearest

_COMMITS = "pinstream commits by itself, and only what is settled"
_CALLBACK = "it can only be set in code, not as text"
_SET_BY_US = "pinstream sets it, because the delivery guarantee depends on it"

# librdkafka property -> why it cannot be set. `refusal` adds rules that are not about a single name.
REFUSED_PROPERTIES: Mapping[str, str] = {
    "enable.auto.commit": _COMMITS,
    "enable.auto.offset.store": _COMMITS,
    "auto.commit.enable": _COMMITS,
    "auto.commit.interval.ms": f"{_COMMITS}, every second",
    "offset.store.method": _COMMITS,
    "offset.store.path": _COMMITS,
    "offset.store.sync.interval.ms": _COMMITS,
    "auto.offset.reset": "the setting is KAFKA_AUTO_OFFSET_RESET",
    "group.id": "the setting is KAFKA_GROUP_ID",
    "bootstrap.servers": "the setting is KAFKA_BOOTSTRAP_SERVERS",
    "metadata.broker.list": "the setting is KAFKA_BOOTSTRAP_SERVERS",
    "acks": f"dead letters wait for all replicas: {_SET_BY_US}",
    "request.required.acks": f"dead letters wait for all replicas: {_SET_BY_US}",
    "enable.idempotence": f"dead letters are written once: {_SET_BY_US}",
    "delivery.report.only.error": f"pinstream needs the delivery report of every dead letter: {_SET_BY_US}",
    "delivery.timeout.ms": "pinstream sets the time limit of a dead letter itself",
    "message.timeout.ms": "pinstream sets the time limit of a dead letter itself",
    "transactional.id": "dead letters are not written in transactions",
    "enable.partition.eof": _SET_BY_US,
    "allow.auto.create.topics": "a missing topic has to be an error, not a new and empty topic",
    "check.crcs": "a record that was corrupted in transit must not be delivered: checksums are always checked",
    "plugin.library.paths": "it would load foreign code into the process",
    "statistics.interval.ms": "pinstream reads the statistics to see whether the brokers answer",
    "topic.blacklist": "name the topics to read in KAFKA_TOPICS",
    "share.acknowledgement.mode": "pinstream reads in consumer groups, not share groups",
    "enabled_events": _CALLBACK,
    "opaque": _CALLBACK,
    "logger": _CALLBACK,
    "default.topic.config": _CALLBACK,
    "default_topic_conf": _CALLBACK,
    "on_commit": _CALLBACK,
    "on_delivery": _CALLBACK,
}

# Variables of Kafka's own shell scripts. No librdkafka property has such a name.
FOREIGN_KAFKA_NAME = re.compile(r"KAFKA_(?:HOME|(?:\w+_)?OPTS)")

# Properties that have underscores in their own names, as far as a variable may name them.
_UNDERSCORED = ("log_level", "enabled_events", "default_topic_conf", "on_commit", "on_delivery")

# sasl.password, ssl.keystore.password, sasl.oauthbearer.client.secret, ssl.key.pem, … of librdkafka.
_SECRET_PROPERTY = re.compile(
    r"(?:.+\.)?(?:password|secret|passphrase)|.+\.key\.pem|sasl\.oauthbearer\.config|sasl\.jaas\.config"
)

# The registry's client has few properties and gives no useful message for a wrong one, so they are listed here, each
# with the type that the client insists on.
REGISTRY_PROPERTIES: Mapping[str, type[float] | type[str]] = {
    "timeout": float,
    "cache.capacity": float,
    "cache.latest.ttl.sec": float,
    "max.retries": float,
    "retries.wait.ms": float,
    "retries.max.wait.ms": float,
    "proxy": str,
    "basic.auth.user.info": str,
    "ssl.ca.location": str,
    "ssl.key.location": str,
    "ssl.key.password": str,
    "ssl.certificate.location": str,
    "bearer.auth.credentials.source": str,
    "bearer.auth.logical.cluster": str,
    "bearer.auth.identity.pool.id": str,
    "bearer.auth.token": str,
    "bearer.auth.client.id": str,
    "bearer.auth.client.secret": str,
    "bearer.auth.scope": str,
    "bearer.auth.issuer.endpoint.url": str,
    "bearer.auth.issuer.endpoint.query": str,
}
_REGISTRY_SECRETS = {
    "basic.auth.user.info",
    "ssl.key.password",
    "bearer.auth.token",
    "bearer.auth.client.secret",
}
# What the examples for Java's serialisers have, and what it is here.
_CA, _OWN = "ssl.ca.location", "ssl.certificate.location"
_OF_JAVA: Mapping[str, str] = {
    "basic.auth.credentials.source": "basic.auth.user.info",
    "ssl.truststore.location": _CA,
    "ssl.truststore.password": _CA,
    "ssl.truststore.type": _CA,
    "ssl.keystore.location": _OWN,
    "ssl.keystore.password": _OWN,
    "ssl.keystore.type": _OWN,
}
# A larger file is not a secret but the wrong file.
_SECRET_FILE_BYTES = 64 * 1024


def kafka_property(variable: str) -> str:
    """``KAFKA_SASL_USERNAME`` -> ``sasl.username``."""
    # Variables cannot have dots in most shells.
    rest = variable.removeprefix("KAFKA_").lower()
    return rest if rest in _UNDERSCORED else rest.replace("_", ".")


def kafka_variable(name: str) -> str:
    """``sasl.username`` -> ``KAFKA_SASL_USERNAME``."""
    return "KAFKA_" + name.upper().replace(".", "_")


def registry_property(variable: str) -> str:
    """``SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO`` -> ``basic.auth.user.info``."""
    return variable.removeprefix("SCHEMA_REGISTRY_").lower().replace("_", ".")


def registry_variable(name: str) -> str:
    """``basic.auth.user.info`` -> ``SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO``."""
    return "SCHEMA_REGISTRY_" + name.upper().replace(".", "_")


def is_secret(variable: str) -> bool:
    """Return True if the value of a variable that passes through may be in a file, and may have blanks at its ends."""
    if variable.startswith("SCHEMA_REGISTRY_"):
        return registry_property(variable) in _REGISTRY_SECRETS
    return variable.startswith("KAFKA_") and bool(_SECRET_PROPERTY.fullmatch(kafka_property(variable)))


def refusal(name: str, value: str) -> str | None:
    """Return why this librdkafka property cannot be set to this value; None if it can."""
    if name in REFUSED_PROPERTIES:
        return REFUSED_PROPERTIES[name]
    if name.startswith("test."):  # librdkafka's mock cluster
        return "it would replace the brokers by simulated ones"
    if name.endswith((".cb", "_cb")):
        return _CALLBACK
    if name == "isolation.level" and value.lower() != "read_committed":
        return "records of aborted transactions would be delivered; leave it at read_committed"
    return None


def service_link_names(environ: Mapping[str, str]) -> frozenset[str]:
    """The variables that Kubernetes made for its services (and Docker for its links)."""
    # A service has both variables (Kubernetes, "Environment variables" of services): one alone is somebody's mistake.
    bases = [
        name.removesuffix("_SERVICE_HOST")
        for name in environ
        if name.endswith("_SERVICE_HOST") and name.removesuffix("_HOST") + "_PORT" in environ
    ]
    if not bases:
        return frozenset()
    base = "|".join(map(re.escape, bases))
    link = re.compile(rf"(?:{base})_(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_[A-Z]+(?:_\w+)?)?)")
    return frozenset(name for name in environ if link.fullmatch(name))


def kafka_properties(environ: Mapping[str, str], ignored: Collection[str]) -> dict[str, SecretStr]:
    """Return librdkafka properties from every ``KAFKA_…`` variable not in `ignored`. Raises `SettingsError`."""
    properties: dict[str, SecretStr] = {}
    for variable, value in _given("KAFKA_", environ, ignored):
        name = kafka_property(variable)
        reason = refusal(name, value)
        if reason is not None:
            raise SettingsError(f"{variable} is refused: {reason}; remove it")
        properties[name] = SecretStr(value)
    return properties


def registry_properties(environ: Mapping[str, str], ignored: Collection[str]) -> dict[str, SecretStr]:
    """Return registry client properties from every ``SCHEMA_REGISTRY_…`` variable not in `ignored`."""
    properties: dict[str, SecretStr] = {}
    for variable, value in _given("SCHEMA_REGISTRY_", environ, ignored):
        name = registry_property(variable)
        if name in _OF_JAVA:
            ours = registry_variable(_OF_JAVA[name])
            kind = ", with a file in PEM format" if name.startswith("ssl.") else " alone"
            raise SettingsError(
                f"{variable} is a setting of Java's clients; set {ours}{kind}, and remove this one"
            )
        if name not in REGISTRY_PROPERTIES:
            near = nearest(name, REGISTRY_PROPERTIES)
            hint = f"did you mean {registry_variable(near)}?" if near else "correct or remove it"
            raise SettingsError(f"{variable} is not a setting of the registry's client; {hint}")
        if REGISTRY_PROPERTIES[name] is float and not re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
            raise SettingsError(f"{variable} is not a number; write digits")
        properties[name] = SecretStr(value)
    return properties


def read_secret_file(variable: str, path: Path, parse: Callable[[str], str] | None = None) -> str:
    """Return the secret in the file that `variable` names, without the line break at its end; or what `parse` returns
    of it, without blanks around it. Raises `SettingsError`."""
    # Without a folder in it, the path may be the secret itself, given instead of a path: do not show it.
    is_path = len(path.parts) > 1 and os.path.isdir(path.parent)
    named = f"{variable}: {str(path)!r}" if is_path else f"{variable}: its value"
    try:
        with path.open("rb") as file:
            # Bounded: the path may name a device, or a file of gigabytes.
            raw = file.read(_SECRET_FILE_BYTES + 1)
        text = raw.decode("utf-8").rstrip("\r\n")
    except OSError as error:
        raise SettingsError(
            f"{named} cannot be read: {error.strerror}; it must name a file that contains the secret"
        ) from None
    except UnicodeDecodeError:
        raise SettingsError(f"{named} is not UTF-8 text; is it the right file?") from None
    if not text.strip() or len(raw) > _SECRET_FILE_BYTES:
        what = "is larger than 64 KiB" if text.strip() else "is empty"
        raise SettingsError(f"{named} {what}; the file must contain the secret and nothing else")
    try:
        return text if parse is None else parse(text.strip())
    except ValueError as error:
        raise SettingsError(f"{named}: the text in the file {error}") from None


def _given(prefix: str, environ: Mapping[str, str], ignored: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield name and text of each set variable with this prefix."""
    # Sorted, so that the same environment always fails the same way.
    for variable in sorted(environ):
        text = environ[variable]
        if variable.startswith(prefix) and variable != prefix and variable not in ignored and text.strip():
            # Blanks around a secret may belong to it.
            yield variable, text if is_secret(variable) else text.strip()
