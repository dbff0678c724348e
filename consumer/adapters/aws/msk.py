"""Amazon MSK with IAM: ``KAFKA_SASL_MECHANISM=AWS_MSK_IAM``, AWS's name for it in Java clients.

librdkafka does not know this mechanism. It logs in by OAUTHBEARER instead, as AWS documents for clients other than
Java: the token is a request for ``kafka-cluster:Connect``, signed with the AWS credentials of this machine or pod.

::

    make_client -> with_tokens(config) -> sasl.mechanism=OAUTHBEARER, oauth_cb=Tokens
    librdkafka, when four fifths of a token's life are over -> oauth_cb -> AWS credentials -> signature -> token

confluent-kafka calls ``oauth_cb`` in a background thread of each client, even if the client is not polled: so an idle
producer, and an AdminClient, which is never polled, get their next token as well. While there is no token, librdkafka
asks again every ten seconds. A client cannot be made without a first token: then `NoToken` is raised.
"""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaException

from consumer.adapters.aws import find_region, new_session, one_line
from consumer.errors import KafkaError, SettingsError, missing_extra

_Code = confluent_kafka.KafkaError

MECHANISM: Final = "AWS_MSK_IAM"
_MECHANISMS: Final = ("sasl.mechanism", "sasl.mechanisms")  # librdkafka knows both names

# b-1.orders.abcdef.c2.kafka.eu-west-1.amazonaws.com, boot-abcdef.c3.kafka-serverless.eu-west-1.amazonaws.com
_HOST: Final = re.compile(r"\.kafka(?:-serverless)?\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?(?::|$)")

# Seconds. A token lasts 900, but no longer than the credentials that signed it. botocore renews those only when less
# than 600 are left, so a new token is valid for at least that long.
_MAX_LIFE: Final = 600.0
_SHARED_LIFE: Final = 0.5
"""Share of its life during which one token serves all clients of the process that ask for one."""
_CHECK: Final = (
    "check this machine's or pod's role (or AWS_PROFILE, AWS_ACCESS_KEY_ID), and whether AWS can be reached"
)
_RAISED: Final = "OAuth callback raised exception"  # confluent-kafka's text, which hides the reason


class NoToken(KafkaError, KafkaException):
    """No token can be had now. Also a `KafkaException`: code that waits for the brokers waits for a token, too."""


def _is_outage(error: Exception) -> bool:
    """Return whether AWS could not be asked. If it refuses, or there are no credentials, waiting does not help."""
    from botocore.exceptions import ConnectionError, HTTPClientError

    return isinstance(error, ConnectionError | HTTPClientError)


def asked(config: Mapping[str, object]) -> bool:
    """Return whether this configuration logs in with IAM."""
    return any(str(config.get(name, "")).upper() == MECHANISM for name in _MECHANISMS)


def with_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration for librdkafka, with a source of tokens. Blocks for the first token.

    Raises `SettingsError` without the extra or a region, `NoToken` if there is no token now.
    """
    tokens = tokens_for(config)  # a client without a token would wait for ten seconds and then not report why
    rest = {name: value for name, value in config.items() if name not in _MECHANISMS}
    on_error = rest.get("error_cb")
    return {
        "security.protocol": "SASL_SSL",
        **rest,
        "sasl.mechanism": "OAUTHBEARER",
        "oauth_cb": tokens,
        **({} if on_error is None else {"error_cb": lambda error: on_error(tokens.explain(error))}),
    }


def tokens_for(config: Mapping[str, object]) -> TokenSigner:
    """Return the source of tokens for the brokers of this configuration, once it has a token. Blocks; raises as
    `with_tokens`."""
    tokens = tokens_of(str(config.get("bootstrap.servers", "")))
    tokens("")
    return tokens


class TokenSigner:
    """Signs tokens for the brokers `servers`. It is librdkafka's ``oauth_cb``, called in any thread.

    Raises `SettingsError` without the extra or a region.
    """

    def __init__(self, servers: str) -> None:
        try:
            from aws_msk_iam_sasl_signer import MSKAuthTokenProvider
        except ImportError:
            raise SettingsError(f"KAFKA_SASL_MECHANISM={MECHANISM}, and {missing_extra('msk')}") from None
        self._sign: Any = MSKAuthTokenProvider.generate_auth_token_from_credentials_provider
        self._region, self._region_from = self._find_region(servers)
        self._lock = threading.Lock()
        self._token: tuple[str, float] = ("", 0.0)
        self._renew_at = 0.0
        self._error = ""
        self.used = ""
        """Region and kind of credentials of the last token."""

    def __call__(self, _config: str) -> tuple[str, float]:
        """Return a token and the time (Unix) at which it expires. Blocks; raises `NoToken`."""
        with self._lock:  # the other clients use the token that one client got a moment ago
            if time.time() >= self._renew_at:
                try:
                    self._renew()
                except Exception as error:  # botocore has some forty kinds; none of them shows a credential
                    self._error = f"{one_line(error)}: {_CHECK}"
                    raise NoToken(f"Kafka: {self._no_token()}", may_pass=_is_outage(error)) from None
                self._error = ""
            return self._token

    def explain(self, error: confluent_kafka.KafkaError) -> confluent_kafka.KafkaError:
        """Return librdkafka's error, with the credentials that were used for the login or why there is no token."""
        if error.code() != _Code._AUTHENTICATION:
            return error
        said = error.str()
        if _RAISED in said:
            return _Code(error.code(), said.replace(_RAISED, self._no_token()))
        return _Code(error.code(), f"{said} ({MECHANISM}: {self.used})")

    def _no_token(self) -> str:
        # Another thread may have got a token in the meantime.
        return f"no token for {MECHANISM} ({self._region}): {self._error or 'it has just ended'}"

    def _renew(self) -> None:
        from botocore.credentials import CredentialProvider, Credentials

        # A new session each time reads files and variables again, which may hold other credentials by now.
        found = new_session().get_credentials()
        if found is None:
            raise LookupError("no AWS credentials were found")
        key, secret, token = found.get_frozen_credentials()[:3]

        class BoundedCredentials(CredentialProvider):  # type: ignore[misc]  # botocore has no annotations
            """Passes the found credentials to the signer, which by itself would look for them without a time limit."""

            def load(self) -> Credentials:
                return Credentials(key, secret, token)

        text, ends = self._sign(self._region, BoundedCredentials())
        now = time.time()
        life = min(ends / 1000 - now, _MAX_LIFE)
        self._token, self._renew_at = (text, now + life), now + life * _SHARED_LIFE
        self.used = f"region {self._region} ({self._region_from}), credentials by {found.method}"

    def _find_region(self, servers: str) -> tuple[str, str]:
        """Return the region of the cluster, and where it was found."""
        # The brokers' name first: AWS_REGION is the region of this process, and the cluster may be in another one.
        if named := _HOST.search(servers.split(",")[0].strip()):
            return named[1], "by the brokers' name"
        region = find_region(MECHANISM)
        if not region:
            raise SettingsError(
                f"KAFKA_SASL_MECHANISM={MECHANISM} needs the region of the cluster: set AWS_REGION "
                "(the name of the brokers in KAFKA_BOOTSTRAP_SERVERS does not contain it)"
            )
        return region, "by AWS_REGION, AWS_DEFAULT_REGION or the profile"


tokens_of: Final = functools.cache(TokenSigner)
"""The source of tokens for these brokers: one for all clients of the process. `cache_clear` makes the next client
read variables, files and the signer again: tests change them."""
