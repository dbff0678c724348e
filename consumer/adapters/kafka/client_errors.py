"""What librdkafka's errors mean: which of them end the run, and the one line to show.

librdkafka reports everything that goes wrong, and recovers from most of it by itself: a broker that is down, a
coordinator that moves. These are *transient errors*: they are reported to the shell, and nothing stops. A few errors
never recover by themselves (a refused login, a missing permission, a fenced member, no offset to start from): a run
that went on would look alive and deliver nothing, so they become a `consumer.errors.KafkaError`.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import confluent_kafka

from consumer.adapters.aws import msk
from consumer.adapters.network import certificate_fault, client_certificate, date, file_stamp
from consumer.engine.model import TopicPartition
from consumer.errors import NO_ROOM, KafkaError

_Code = confluent_kafka.KafkaError
# By their numbers: older clients have no names for them.
_INCONSISTENT_TOPIC_ID, _INVALID_REGULAR_EXPRESSION = 103, 128

OnError = Callable[[str, str], None]
"""Called on the event loop for a transient error: a code (``_TRANSPORT``) and a line that does not repeat the code."""

_LOGIN = (
    "the broker refused the login: check KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD and KAFKA_SASL_MECHANISM"
)
_BEARER_REFUSED = (
    "the broker refused the token: check what it asks of tokens (issuer, audience, scope, the claim that names the "
    "user) and KAFKA_SASL_OAUTHBEARER_SCOPE"
)
_BEARER_MISSING = (
    "no token could be had from KAFKA_SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL: check it, "
    "KAFKA_SASL_OAUTHBEARER_CLIENT_ID and KAFKA_SASL_OAUTHBEARER_CLIENT_SECRET"
)
_IAM_REFUSED = (
    "the broker refused the login with IAM: allow kafka-cluster:Connect on the cluster to this role "
    "(`pinstream check --rights iam` prints the policy), and check the region and the port (9098)"
)
# Errors of librdkafka's curl about a proxy, and about a certificate.
_TOKEN_WAYS: Final = (
    (
        re.compile("CONNECT tunnel failed|resolve proxy|CONNECT aborted", re.IGNORECASE),
        "the proxy of HTTPS_PROXY did not open a connection to KAFKA_SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL: let it allow "
        "that, or correct HTTPS_PROXY and PINSTREAM_PROXY_CREDENTIALS_FILE",
    ),
    (
        re.compile("certificate|trust anchors"),
        "the certificate of KAFKA_SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL is not trusted: put that of the authority that "
        "signed it, or of a proxy that opens TLS, into PINSTREAM_CA_FILE",
    ),
)
PROTOCOL: Final = (
    "the brokers do not take KAFKA_GROUP_PROTOCOL=consumer (Kafka 4.0 does, unless it is turned off): "
    "remove the setting, or update the brokers"
)
_FENCED = (
    "another process uses the same KAFKA_GROUP_INSTANCE_ID, or the session of a killed one has not ended yet: give "
    "each process its own"
)

_FATAL: Final = {
    _Code._AUTHENTICATION: _LOGIN,
    _Code.SASL_AUTHENTICATION_FAILED: _LOGIN,
    _Code.UNSUPPORTED_SASL_MECHANISM: _LOGIN,
    _Code.TOPIC_AUTHORIZATION_FAILED: "this user may not use the topic: grant READ on it, or correct KAFKA_TOPICS",
    _Code.GROUP_AUTHORIZATION_FAILED: "this user may not join the group: grant READ on it, or correct KAFKA_GROUP_ID",
    _Code.CLUSTER_AUTHORIZATION_FAILED: "this user may not use the cluster: check its permissions",
    _Code._AUTO_OFFSET_RESET: "{partition} has no offset to start from (none is committed, or the committed one no "
    "longer exists) and KAFKA_AUTO_OFFSET_RESET is error: set the group's offsets with `pinstream offsets set`, "
    "or set KAFKA_AUTO_OFFSET_RESET=earliest",
    _Code._LOG_TRUNCATION: "the log of {partition} was cut, by a leader that lacked its last records, and "
    "KAFKA_AUTO_OFFSET_RESET is error: set the group's offset there with `pinstream offsets set`, or set "
    "KAFKA_AUTO_OFFSET_RESET=earliest, which goes on where the log was cut",
    _Code.UNSUPPORTED_VERSION: PROTOCOL,
    _Code._UNSUPPORTED_FEATURE: PROTOCOL,
    _Code.INCONSISTENT_GROUP_PROTOCOL: "other members of the group use another protocol: use the same assignment "
    "strategy, or another group",
    _Code.UNSUPPORTED_ASSIGNOR: "the brokers do not know this assignor: correct KAFKA_GROUP_REMOTE_ASSIGNOR",
    _Code.INVALID_GROUP_ID: "the brokers refuse the name of the group: correct KAFKA_GROUP_ID",
    _Code.INVALID_SESSION_TIMEOUT: "the brokers do not allow this KAFKA_SESSION_TIMEOUT_MS: keep to their limits",
    _INVALID_REGULAR_EXPRESSION: "the brokers cannot parse the pattern: correct KAFKA_TOPICS",
    _Code.FENCED_INSTANCE_ID: _FENCED,
    _Code.UNRELEASED_INSTANCE_ID: _FENCED,
}

# Codes by librdkafka's texts for them. GROUP_ID_NOT_FOUND ends the client only of a KIP-848 group: the brokers do not
# know the group (any more). A new client may join it.
_ENDS: Final = {_Code(code).str(): code for code in (*_FATAL, _Code.GROUP_ID_NOT_FOUND)}

# Groups of errors, by their names, as in `CommitDone.failure`. Errors while a group's coordinator starts or moves: a
# question may be asked again.
MOVING_COORDINATOR: Final = frozenset(
    {"COORDINATOR_LOAD_IN_PROGRESS", "COORDINATOR_NOT_AVAILABLE", "NOT_COORDINATOR", "_WAIT_COORD"}
)
# The same for the first questions, which may also be repeated after a connection to the coordinator broke or had to log
# in again. (The error of a question does not show whether a login was refused: see `_NOT_JUDGED`.)
PASSING: Final = MOVING_COORDINATOR | {"_TRANSPORT", "_AUTHENTICATION"}
# Codes with which brokers refuse offsets from outside while a group has members.
GROUP_IN_USE: Final = frozenset(
    {"UNKNOWN_MEMBER_ID", "ILLEGAL_GENERATION", "REBALANCE_IN_PROGRESS"}
    | {"STALE_MEMBER_EPOCH", "FENCED_MEMBER_EPOCH", "NON_EMPTY_GROUP"}
)
# Codes of a refused commit that the same member may repeat: it just joined again (the client does not know its new
# generation yet, or the group waits for its leader's plan), or the coordinator moves.
BETWEEN_GENERATIONS: Final = frozenset(
    {"ILLEGAL_GENERATION", "REBALANCE_IN_PROGRESS", "STALE_MEMBER_EPOCH"} | MOVING_COORDINATOR
)
# Codes of a last commit that is repeated: no later one replaces it. A connection that broke, or had to log in again,
# gives it up after five attempts within a second.
LAST_COMMIT_AGAIN: Final = BETWEEN_GENERATIONS | PASSING
# Codes of a commit that is too large: this broker accepts less than the default of 4,096 bytes of metadata, or less for
# all commits together.
METADATA_TOO_LARGE: Final = frozenset({"OFFSET_METADATA_TOO_LARGE", "INVALID_COMMIT_OFFSET_SIZE"})
# Code of a position whose partition is no longer assigned to this member in that epoch.
ASSIGNMENT_LOST: Final = "_ASSIGNMENT_LOST"
# From here on by their numbers. The partition has another leader than the client knows, as often just after it was
# created.
MOVING_LEADER: Final = frozenset(
    {_Code.NOT_LEADER_FOR_PARTITION, _Code.LEADER_NOT_AVAILABLE}
    | {_Code.UNKNOWN_LEADER_EPOCH, _Code.FENCED_LEADER_EPOCH}
)
MISSING_TOPIC: Final = frozenset({_Code.UNKNOWN_TOPIC_OR_PART, _Code._UNKNOWN_TOPIC, _Code.UNKNOWN_TOPIC_ID})
# Errors that also come after a topic was deleted and created again.
OTHER_TOPIC: Final = MISSING_TOPIC | {
    _INCONSISTENT_TOPIC_ID,
    _Code.OFFSET_OUT_OF_RANGE,
    _Code._UNKNOWN_PARTITION,
}
NOT_ALLOWED: Final = frozenset(
    {_Code.CLUSTER_AUTHORIZATION_FAILED, _Code.GROUP_AUTHORIZATION_FAILED, _Code.TOPIC_AUTHORIZATION_FAILED}
)
# Answers of a broker that is too old for the question; the embedded broker gives them to many questions.
CANNOT_SAY: Final = frozenset({_Code._UNSUPPORTED_FEATURE, _Code.UNSUPPORTED_VERSION})
# Errors of a batch with a wrong checksum, one that cannot be decompressed or has an unknown format; or the broker
# cannot read its disk.
DAMAGED: Final = frozenset(
    {_Code._BAD_MSG, _Code._BAD_COMPRESSION, _Code._NOT_IMPLEMENTED, _Code.INVALID_MSG}
)
TOO_LARGE: Final = frozenset({_Code.MSG_SIZE_TOO_LARGE, _Code.RECORD_LIST_TOO_LARGE})
# Errors that one record causes for its whole batch or transaction.
FOR_ONE_RECORD: Final = TOO_LARGE | {_Code.INVALID_RECORD}

NOT_OPEN: Final = "the Kafka consumer is not open: start it before use, and do not use it after closing"
# Why a client is replaced, as code and text for `OnError`.
FORGOTTEN: Final = ("GROUP_ID_NOT_FOUND", "the brokers no longer know the group: joining again")
STRANDED: Final = ("_ALL_BROKERS_DOWN", "the client has lost all brokers: joining with another one")
# The event loop did not answer: what it holds is not known.
STARVED: Final = (
    "_TIMED_OUT",
    "the process is too busy to handle a rebalance in time: its partitions are lost, joining again",
)

_TOKEN_MISSING: Final = re.compile("Failed to acquire SASL OAUTHBEARER token|there is no token available")
# What librdkafka's curl says of a token endpoint that it did not reach.
_UNREACHED: Final = re.compile(
    "connect to|resolve host|timed out|Timeout was reached|Recv failure|reset by peer"
)
# The answer of a listener without logins to a login.
_NO_LOGIN: Final = re.compile("mechanism handshake failed: Broker: Request not valid in current SASL state")
# A login that was never judged: the connection broke, or it was to log in again before its token ends and the broker
# was not ready for it. librdkafka makes another connection. (Amazon MSK limits the logins with IAM per second.) A
# request that was in flight when a login failed fails with librdkafka's own text behind that of the request ("JoinGroup
# failed: "). An error about the login itself comes beside it, always with a reason, and says whether the broker refused
# it.
_NOT_JUDGED: Final = re.compile(
    "mechanism handshake failed: (?!Broker: Unsupported SASL mechanism)|SaslAuthenticateRequest failed: "
    "|Too many connects|Local: Authentication failure"
)
# With TLS, the text of a broker's alert about the client's certificate.
_CERTIFICATE_ALERT: Final = re.compile(
    r"alert (?:bad certificate|certificate \w+|unknown ca|handshake failure)"
)
_WANTED: Final = {
    "plaintext": "SASL_SSL, SSL or SASL_PLAINTEXT",
    "sasl_plaintext": "SASL_SSL",
    "ssl": "SASL_SSL",
}
"""What a broker may require if it closes connections of this security protocol."""
_CUT: Final = re.compile(r"log truncation detected at .*: broker end offset is (\d+)")
_AT: Final = re.compile(r"(?:\w+://)?(?P<host>[^/\s,]+):(?P<port>\d+)")
_ENDPOINT: Final = "sasl.oauthbearer.token.endpoint.url"
_HANDSHAKE_SECONDS: Final = 3.0
# Kafka's first question, ApiVersions: its size, its key 18, version 0, number 0, and no name of a client.
_API_VERSIONS: Final = b"\0\0\0\x0a\0\x12\0\0\0\0\0\0\xff\xff"
_TLS_ALERT: Final = b"\x15"

_OF_A_BROKER: Final = frozenset({_Code._TRANSPORT, _Code._RESOLVE, _Code._SSL, _Code._TIMED_OUT})
_STATE: Final = re.compile(r" \((?:after )?\d+ms in state .*\)$")
_ABOUT_A_BROKER: Final = re.compile(
    r"(?:\w+://)?(?P<broker>[^\s/]+)/\S+: "
    r"(?:Connect to ipv[46]#(?P<address>\S+) failed: |Failed to resolve '[^']*': )?(?P<why>.+)"
)
# The first four bytes of an answer are its size: these are "HTTP". librdkafka advises to take larger answers.
_HTTP: Final = "Invalid response size 1213486160"


def as_fatal(error: confluent_kafka.KafkaError, partition: TopicPartition | None = None) -> KafkaError | None:
    """Return the error that ends the run, or None if librdkafka recovers from this one by itself.

    `partition`: the one that the error is about, if it is about one.
    """
    if is_unjudged_login(error):
        return None
    code, text = cause_code(error), error.str()
    advice = _FATAL.get(code)
    if code == _Code._AUTHENTICATION and msk.MECHANISM in text:
        advice = _IAM_REFUSED
    elif code == _Code._AUTHENTICATION and '{"status"' in text:
        advice = _BEARER_REFUSED
    # An error that ended a client comes out of its queue as _FATAL, and not marked as fatal.
    if advice is None and not error.fatal() and error.code() != _Code._FATAL:
        return None
    about = str(partition) if partition and partition.topic else "a partition"
    advice = advice and advice.replace("{partition}", about)
    return KafkaError(
        f"Kafka: {advice or 'the client cannot continue: restart it'} ({describe_error(error)})"
    )


def cut_at(error: confluent_kafka.KafkaError) -> int | None:
    """Return the offset at which a partition's log was cut, if `error` is about that."""
    found = _CUT.search(error.str())
    return None if found is None else int(found[1])


def is_unjudged_login(error: confluent_kafka.KafkaError) -> bool:
    """Return whether a login, or a request because of it, failed without the broker's verdict on the login.

    librdkafka logs in again, and asks for a token every ten seconds; a request that failed may be made again.
    """
    text = error.str()
    # The second code: the beginning of a partition was asked for, under ``auto.offset.reset=error``.
    return error.code() in (_Code._AUTHENTICATION, _Code._AUTO_OFFSET_RESET) and bool(
        _TOKEN_MISSING.search(text) or _NOT_JUDGED.search(text)
    )


def kafka_failure(
    error: confluent_kafka.KafkaError | confluent_kafka.KafkaException, text: str
) -> KafkaError:
    """Return the error to raise: the one for which `error` always ends the run, or else `text` with librdkafka's
    words."""
    cause = error if isinstance(error, _Code) else cause_of(error)
    return as_fatal(cause) or KafkaError(f"Kafka: {text} ({describe_error(cause)})")


def cause_code(error: confluent_kafka.KafkaError) -> int:
    """Return the code; for an error that ended a client, or a partition without a start, the code behind it if its text
    is known."""
    if error.code() not in (_Code._FATAL, _Code._AUTO_OFFSET_RESET):
        return error.code()
    # The code behind it is lost on the way out of the client's queue; only its text is left.
    return next((code for text, code in _ENDS.items() if text in error.str()), error.code())


def describe_error(error: confluent_kafka.KafkaError) -> str:
    """Return ``CODE: librdkafka's words``, on one line."""
    return f"{error.name()}: {words(error)}"


def words(error: confluent_kafka.KafkaError) -> str:
    """Return librdkafka's text on one line, without parts that only its authors can use or that differ each time."""
    said = _line(error)
    about = _ABOUT_A_BROKER.fullmatch(said)
    if about is not None and speaks_http(error):
        return f"{about['broker']} speaks HTTP, not Kafka"
    if about is None or about["address"] is None:
        return said
    at = "" if about["address"] == about["broker"] else f" ({about['address']})"
    return f"no connection to {about['broker']}{at}: {about['why']}"


def _line(error: confluent_kafka.KafkaError) -> str:
    """Return librdkafka's text on one line, without for how long the connection was in its state."""
    return _STATE.sub("", " ".join(error.str().split()))


def why_silent(config: Mapping[str, object], heard: confluent_kafka.KafkaError | None) -> str:
    """Return ``host:port, connection refused`` for `messages.BrokersSilent`: what the latest error `heard` of a broker
    says; None: brokers that accept connections, and do not answer."""
    found = None if heard is None else _ABOUT_A_BROKER.fullmatch(_line(heard))
    if heard is None or found is None:
        return f"{config.get('bootstrap.servers')}, no answer"
    why = found["why"]
    if speaks_http(heard):
        why = "it speaks HTTP, not Kafka"
    elif _CERTIFICATE_ALERT.search(heard.str()):
        why = f"the broker refuses the client's certificate{_ended(config)}"
    elif "timed out" in why.lower():
        why = "no answer"
    return f"{found['broker']}, {why[:1].lower()}{why[1:]}"


def speaks_http(error: confluent_kafka.KafkaError) -> bool:
    """Return whether a server that is named as a broker answered in HTTP."""
    return _HTTP in error.str()


def _ended(config: Mapping[str, object]) -> str:
    found = client_certificate(config)
    return f", which ended at {date(found[1])}" if found is not None and found[1] < time.time() else ""


def is_of_a_broker(error: confluent_kafka.KafkaError) -> bool:
    """Return whether the error is about the connection to one broker."""
    return error.code() in _OF_A_BROKER


@dataclass
class ErrorReporter:
    """Reports a client's errors, with librdkafka's text."""

    _on_error: OnError
    _reported: bool = False
    """Whether an error of a single broker was reported."""

    def __call__(self, error: confluent_kafka.KafkaError) -> None:
        """Report an error that librdkafka's `error_cb` brought."""
        # If there is only one broker, "all brokers are down" says nothing new once its own error was reported. A broker
        # that accepts connections and never answers has no error of its own.
        all_down = error.code() == _Code._ALL_BROKERS_DOWN
        down, _, known = error.str().partition(" ")[0].partition("/")
        several = down == known != "1"  # while one is being discovered these can be ``0/2``
        if not all_down or not self._reported or several:
            self._on_error(error.name(), words(error))
        self._reported = self._reported or is_of_a_broker(error)


class TlsFiles:
    """The files of certificates and keys that a client's configuration names. librdkafka reads them when it makes the
    client, and never again."""

    def __init__(self, config: Mapping[str, object]) -> None:
        names = (name for name in config if name.startswith("ssl.") and name.endswith(".location"))
        self._seen = {file: file_stamp(file) for file in (Path(str(config[name])) for name in names)}

    def explain(self, error: confluent_kafka.KafkaError) -> KafkaError | None:
        """Return the error that ends the run if `error` is about TLS and a file has changed, which only a new client
        reads."""
        if error.code() != _Code._SSL and not _CERTIFICATE_ALERT.search(error.str()):
            return None
        for file, before in self._seen.items():
            if file_stamp(file) != before:
                return KafkaError(
                    f"Kafka: TLS fails, and {file} has changed since the start: start again, so that it is read "
                    f"({describe_error(error)})"
                )
        return None


def cause_of(error: confluent_kafka.KafkaException) -> confluent_kafka.KafkaError:
    """Return the KafkaError inside a KafkaException."""
    inner = error.args[0]
    return inner if isinstance(inner, _Code) else _Code(_Code._FAIL, str(inner))


def ignore_error(code: str, text: str) -> None:
    """Do nothing, as an `OnError`."""


def _ends_a_contact(error: confluent_kafka.KafkaError) -> KafkaError | None:
    # A client without a thread for a broker asks the others; at the beginning there may be only one.
    if error.code() == _Code._CRIT_SYS_RESOURCE:
        return KafkaError(f"Kafka: {NO_ROOM} ({describe_error(error)})")
    return as_fatal(error)


def no_contact(
    config: Mapping[str, object], timeout: float, heard: Sequence[confluent_kafka.KafkaError]
) -> KafkaError:
    """Return the error to raise when a first contact brought nothing but the errors `heard`, within `timeout`
    seconds; it says whether that may pass by itself. Blocks: only a TLS handshake of our own shows what is wrong with
    a broker's certificate."""
    if (fatal := next(filter(None, map(_ends_a_contact, heard)), None)) is not None:
        return fatal
    reasons = [error for error in heard if error.code() != _Code._ALL_BROKERS_DOWN]
    first = reasons[0]
    servers = str(config.get("bootstrap.servers"))
    protocol = str(config.get("security.protocol", "plaintext")).lower()
    if (http := _http_server(reasons, servers, protocol)) is not None:
        return KafkaError(
            f"Kafka: {http} speaks HTTP, not Kafka: set KAFKA_BOOTSTRAP_SERVERS to the host and port of the brokers' "
            "Kafka listener (mostly 9092)"
        )
    of_tls = next((one for one in reasons if "SSL" in one.str() or one.code() == _Code._SSL), None)
    # librdkafka reports each connection that cannot be made, but not one that is made and then closed by the broker.
    ended = [error.code() for error in reasons] == [_Code._TRANSPORT]
    wrong: str | None = None
    may_pass = False
    if protocol.endswith("ssl") and (of_tls is not None or (ended and protocol == "ssl")):
        wrong = _wrong_with_tls(config, servers if of_tls is None else of_tls.str())
        ended = wrong is not None
    if wrong:
        why, first = wrong, of_tls or first
    elif any(_TOKEN_MISSING.search(error.str()) for error in reasons):
        if msk.asked(config):  # `msk` has put the reason into librdkafka's text
            return KafkaError(f"Kafka: {describe_error(first)}")
        advice = (one for pattern, one in _TOKEN_WAYS if pattern.search(describe_error(first)))
        why = next(advice, _BEARER_MISSING)
        may_pass = why == _BEARER_MISSING and _UNREACHED.search(describe_error(first)) is not None
    elif any(_NO_LOGIN.search(error.str()) for error in reasons):
        without = "SSL" if protocol == "sasl_ssl" else "PLAINTEXT"
        why = (
            f"{servers} takes no login: use the port of the brokers' SASL listener in KAFKA_BOOTSTRAP_SERVERS, "
            f"or set KAFKA_SECURITY_PROTOCOL={without}"
        )
    elif first.code() == _Code._RESOLVE:
        why = "a broker's name cannot be resolved: check KAFKA_BOOTSTRAP_SERVERS and the DNS"
        may_pass = True
    elif ended and protocol in _WANTED and (replies := _first_bytes(config, servers, protocol)):
        required = "a login" if protocol == "ssl" else "TLS or a login"
        why = (
            f"no broker answered at {servers} within {timeout:g} s: it accepts connections and closes them at once, as "
            f"a broker does that requires {required}: set KAFKA_SECURITY_PROTOCOL ({_WANTED[protocol]}), or correct "
            "KAFKA_BOOTSTRAP_SERVERS"
        )
        # Whether a broker is there that requires TLS or a login. (A proxy or a load balancer closes connections, too,
        # while its broker is away, but answers nothing.)
        may_pass = not (_TLS_ALERT in replies if protocol == "sasl_plaintext" else any(replies))
    else:
        # librdkafka asks a token endpoint that answers with an error again and again, and reports nothing.
        endpoint = "KAFKA_SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL, " if _ENDPOINT in config else ""
        why = (
            f"no broker answered at {servers} within {timeout:g} s: check KAFKA_BOOTSTRAP_SERVERS, {endpoint}"
            "KAFKA_SECURITY_PROTOCOL and the network"
        )
        may_pass = True
    return KafkaError(f"Kafka: {why} ({describe_error(first)})", may_pass=may_pass)


@contextlib.contextmanager
def _connection(
    config: Mapping[str, object], at: re.Match[str], *, over_tls: bool
) -> Iterator[socket.socket]:
    """Connect to a server without librdkafka. Raises `OSError` and `ValueError`."""
    host = at["host"].strip("[]")
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(
            socket.create_connection((host, int(at["port"])), _HANDSHAKE_SECONDS)
        )
        if over_tls:
            wrapped = _tls_context(config).wrap_socket(connection, server_hostname=host)
            connection = stack.enter_context(wrapped)
        yield connection


def _first_byte(config: Mapping[str, object], at: re.Match[str], *, over_tls: bool) -> bytes | None:
    """Return the first byte of a server's answer to Kafka's first question; empty: it ends the connection without one.
    None: it keeps it open and says nothing."""
    try:
        with _connection(config, at, over_tls=over_tls) as connection:
            connection.sendall(_API_VERSIONS)
            return connection.recv(1)
    except TimeoutError:
        return None
    except (OSError, ValueError):
        return b""


def _first_bytes(config: Mapping[str, object], servers: str, protocol: str) -> Sequence[bytes]:
    """Return the first byte of each server's answer, except for those that say nothing."""
    answers = (_first_byte(config, at, over_tls=protocol == "ssl") for at in _AT.finditer(servers))
    return [one for one in answers if one is not None]


def _tls_context(config: Mapping[str, object]) -> ssl.SSLContext:
    location = config.get("ssl.ca.location")
    context = ssl.create_default_context(
        cafile=str(location) if location is not None and os.path.isfile(str(location)) else None,
        capath=str(location) if location is not None and os.path.isdir(str(location)) else None,
    )
    context.check_hostname = str(config.get("ssl.endpoint.identification.algorithm", "https")) != "none"
    return context


def _http_server(heard: Sequence[confluent_kafka.KafkaError], servers: str, protocol: str) -> str | None:
    """Return a server that answers in HTTP, by the errors `heard` or by a question of our own; None if none does."""
    for line in map(_line, filter(speaks_http, heard)):
        if (found := _ABOUT_A_BROKER.fullmatch(line)) is not None:
            return found["broker"]
    found = _AT.search(servers)
    if found is None or protocol.endswith("ssl"):
        return None
    try:
        with _connection({}, found, over_tls=False) as connection:
            # Many HTTP servers wait for more. A broker takes these bytes for the size of a request that is too large.
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return found[0] if connection.recv(5, socket.MSG_WAITALL) == b"HTTP/" else None
    except (OSError, ValueError):
        return None


def _wrong_with_tls(config: Mapping[str, object], said: str) -> str | None:
    """Return what is wrong with the TLS of the broker that `said` names, and what to do. Empty: nothing. None:
    unknown."""
    if _CERTIFICATE_ALERT.search(said):
        both = "KAFKA_SSL_CERTIFICATE_LOCATION and KAFKA_SSL_KEY_LOCATION"
        if not any(name.startswith(("ssl.certificate.", "ssl.keystore.")) for name in config):
            return f"the broker asks for a certificate of the client: set {both}"
        return f"the broker refused the client's certificate{_ended(config)}: check {both}, and whether it has expired"
    if (found := _AT.search(said)) is None:
        return None
    where, location = f"{found['host'].strip('[]')}:{found['port']}", config.get("ssl.ca.location")
    try:
        with _connection(config, found, over_tls=True):
            return ""
    except ssl.SSLCertVerificationError as error:
        known = "this machine does not know" if location is None else f"is not in {location}"
        return certificate_fault(
            error,
            where,
            other_name="reach the broker by a name in the certificate "
            "(KAFKA_BOOTSTRAP_SERVERS, and the brokers' advertised.listeners)",
            other_authority=f"{known}: set KAFKA_SSL_CA_LOCATION to a file "
            "with the certificate of that authority",
        )
    except (ssl.SSLError, ConnectionResetError):
        # Neither a certificate nor a reason: the server there does not know TLS, if it says anything at all.
        if not _first_byte(config, found, over_tls=False):
            return None
        plain = str(config.get("security.protocol")).upper().removesuffix("SSL") + "PLAINTEXT"
        return (
            f"{where} does not speak TLS: use the port of its TLS listener in KAFKA_BOOTSTRAP_SERVERS, or set "
            f"KAFKA_SECURITY_PROTOCOL={plain}"
        )
    except (OSError, ValueError):
        return None
