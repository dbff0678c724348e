"""What librdkafka's errors mean: which of them end the run, and the one line to show.

librdkafka reports everything that goes wrong, and recovers from most of it by itself: a broker that is away, a
coordinator that moves. That is *trouble*: reported to the shell, and nothing stops. A few errors never recover by
themselves (a refused login, a missing permission, a fenced member, no offset to start from): a run that went on would
look alive and deliver nothing, so they become a `consumer.errors.KafkaError`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import confluent_kafka

from consumer.errors import KafkaError

_Code = confluent_kafka.KafkaError

OnTrouble = Callable[[str, str], None]
"""Called on the event loop for trouble: a code (``_TRANSPORT``) and a line that does not repeat the code."""

_LOGIN = (
    "the broker refused the login: check KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD and KAFKA_SASL_MECHANISM"
)
_TOPIC_ACCESS = "this user may not use the topic: grant READ on it, or correct KAFKA_TOPICS"
_GROUP_ACCESS = "this user may not join the group: grant READ on it, or correct KAFKA_GROUP_ID"
_NO_START = (
    "a partition has no offset to start from (none is committed, or the committed one no longer exists) and "
    "KAFKA_AUTO_OFFSET_RESET is error: set the group's offsets with `pinstream offsets set`, "
    "or set KAFKA_AUTO_OFFSET_RESET=earliest"
)
_PROTOCOL = "the brokers do not know this group protocol: set KAFKA_GROUP_PROTOCOL=classic or update them"
_MIXED = "other members of the group use another protocol: use the same assignment strategy, or another group"
_FENCED = (
    "another process uses the same KAFKA_GROUP_INSTANCE_ID, or the session of a killed one has not ended yet: give "
    "each process its own"
)

_FATAL: Final = {
    _Code._AUTHENTICATION: _LOGIN,
    _Code.SASL_AUTHENTICATION_FAILED: _LOGIN,
    _Code.UNSUPPORTED_SASL_MECHANISM: _LOGIN,
    _Code.TOPIC_AUTHORIZATION_FAILED: _TOPIC_ACCESS,
    _Code.GROUP_AUTHORIZATION_FAILED: _GROUP_ACCESS,
    _Code.CLUSTER_AUTHORIZATION_FAILED: "this user may not use the cluster: check its permissions",
    _Code._AUTO_OFFSET_RESET: _NO_START,
    _Code.UNSUPPORTED_VERSION: _PROTOCOL,
    _Code._UNSUPPORTED_FEATURE: _PROTOCOL,
    _Code.INCONSISTENT_GROUP_PROTOCOL: _MIXED,
    _Code.UNSUPPORTED_ASSIGNOR: "the brokers do not know this assignor: correct KAFKA_GROUP_REMOTE_ASSIGNOR",
    _Code.INVALID_GROUP_ID: "the brokers refuse the name of the group: correct KAFKA_GROUP_ID",
    _Code.INVALID_SESSION_TIMEOUT: "the brokers do not allow this KAFKA_SESSION_TIMEOUT_MS: keep to their limits",
    _Code.INVALID_REGULAR_EXPRESSION: "the brokers cannot parse the pattern: correct KAFKA_TOPICS",
    _Code.FENCED_INSTANCE_ID: _FENCED,
    _Code.UNRELEASED_INSTANCE_ID: _FENCED,
}

_FORGOTTEN: Final = frozenset({_Code.GROUP_ID_NOT_FOUND})
"""What ends the client of a KIP-848 group, and of no other: the brokers do not know the group (any more)."""
_ENDS: Final = {_Code(code).str(): code for code in (*_FATAL, *_FORGOTTEN)}
"""The codes, by the words that librdkafka has for them."""

MOVING_COORDINATOR: Final = frozenset(
    {"COORDINATOR_LOAD_IN_PROGRESS", "COORDINATOR_NOT_AVAILABLE", "NOT_COORDINATOR", "_WAIT_COORD"}
)
"""Names of the errors while a group's coordinator starts or moves: what was asked may be asked again."""
PASSING: Final = MOVING_COORDINATOR | {"_TRANSPORT"}
"""The same for a question in the beginning, when also a broken connection to the coordinator passes."""
GROUP_IN_USE: Final = frozenset(
    {"UNKNOWN_MEMBER_ID", "ILLEGAL_GENERATION", "REBALANCE_IN_PROGRESS"}
    | {"STALE_MEMBER_EPOCH", "FENCED_MEMBER_EPOCH", "NON_EMPTY_GROUP"}
)
"""Names of the errors with which brokers refuse offsets from outside while a group has members."""
TOO_LARGE: Final = frozenset({_Code.MSG_SIZE_TOO_LARGE, _Code.RECORD_LIST_TOO_LARGE})
FOR_ONE_RECORD: Final = TOO_LARGE | {_Code.INVALID_RECORD}
"""Errors that one record deserves, and its whole batch or transaction gets."""

_OF_A_BROKER: Final = frozenset({_Code._TRANSPORT, _Code._RESOLVE, _Code._SSL, _Code._TIMED_OUT})
_STATE: Final = re.compile(r" \((?:after )?\d+ms in state .*\)$")
_NO_CONNECTION: Final = re.compile(
    r"(?:\w+://)?(?P<broker>[^\s/]+)/\S+: Connect to ipv[46]#(?P<address>\S+) failed: (?P<why>.+)"
)


def as_fatal(error: confluent_kafka.KafkaError) -> KafkaError | None:
    """The error that ends the run, or None if librdkafka recovers from this one by itself."""
    advice = _FATAL.get(_cause(error))
    # An error that ended a client comes out of its queue as _FATAL, without the mark.
    if advice is None and not error.fatal() and error.code() != _Code._FATAL:
        return None
    return KafkaError(
        f"Kafka: {advice or 'the client cannot continue: restart it'} ({describe_error(error)})"
    )


def forgets_group(error: confluent_kafka.KafkaError) -> bool:
    """Whether the client ended because the brokers do not know its group any more. A new client may join it."""
    return error.code() == _Code._FATAL and _cause(error) in _FORGOTTEN


def _cause(error: confluent_kafka.KafkaError) -> int:
    """The code; for an error that ended a client, the code behind it if its words are known."""
    if error.code() != _Code._FATAL:
        return error.code()
    return next((code for text, code in _ENDS.items() if text in error.str()), error.code())


def describe_error(error: confluent_kafka.KafkaError) -> str:
    """``CODE: librdkafka's words``, on one line."""
    return f"{error.name()}: {words(error)}"


def words(error: confluent_kafka.KafkaError) -> str:
    """librdkafka's words on one line, without what only its authors can use and what differs each time."""
    said = _STATE.sub("", " ".join(error.str().split()))
    failed = _NO_CONNECTION.fullmatch(said)
    if failed is None:
        return said
    at = "" if failed["address"] == failed["broker"] else f" ({failed['address']})"
    return f"no connection to {failed['broker']}{at}: {failed['why']}"


class Teller:
    """Reports a client's trouble. That its only broker is down is reported unless that broker's own error says so.

    A broker that takes connections and never answers has no error of its own.
    """

    def __init__(self, on_trouble: OnTrouble) -> None:
        self._on_trouble = on_trouble
        self._told = False

    def __call__(self, error: confluent_kafka.KafkaError) -> None:
        """librdkafka reported this by itself."""
        all_down = error.code() == _Code._ALL_BROKERS_DOWN
        if not (all_down and self._told and not _are_several(error.str())):
            self._on_trouble(error.name(), words(error))
        self._told = self._told or error.code() in _OF_A_BROKER


def _are_several(said: str) -> bool:
    """Whether these words are about more than one broker. While one is being discovered they can be ``0/2``."""
    down, _, known = said.partition(" ")[0].partition("/")
    return down == known != "1"


def exception_error(error: confluent_kafka.KafkaException) -> confluent_kafka.KafkaError:
    """The KafkaError inside a KafkaException."""
    inner = error.args[0]
    return inner if isinstance(inner, _Code) else _Code(_Code._FAIL, str(inner))


def ignore_trouble(code: str, text: str) -> None:
    """An `OnTrouble` that does nothing."""
