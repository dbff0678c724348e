"""A Kafka broker as production has it: TLS, client certificates, logins, and an authorizer. Beside the plain listeners
of `RealBroker`, whose anonymous user may do everything, it listens on:

* ``TLS``: encrypted, no login;
* ``MTLS``: encrypted, and the client shows a certificate; its name is the user;
* ``SASL``: SASL_SSL with PLAIN, SCRAM-SHA-512 or OAUTHBEARER, whose tokens an `Issuer` gives.

The authorizer is Kafka's own (``StandardAuthorizer``). A user without any ACL may do nothing.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs

from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, but the package marks no re-export
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialAlteration,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.support.certificates import Authority
from tests.support.kafka.broker import RealBroker, free_ports
from tests.support.kafka.harness import Kafka

WITHIN = 30.0
USERS = ("shop", "reader", "nobody")
ISSUER = "tests"  # what tokens say of who gave them
PASSWORD = "only-for-tests"  # of each user, by PLAIN and by SCRAM; the broker lives on loopback for minutes

Properties = dict[str, str | int | float | bool]


class Signer:
    """Signs JSON Web Tokens (RS256) and names the key."""

    def __init__(self, name: str = "tests") -> None:
        self._name = name
        self._key = rsa.generate_private_key(65537, 2048)

    def key_set(self) -> bytes:
        """The public key, as a JSON Web Key Set."""
        public = self._key.public_key().public_numbers()
        key = {"kty": "RSA", "kid": self._name, "use": "sig", "alg": "RS256"}
        return json.dumps({"keys": [{**key, "n": _number(public.n), "e": _number(public.e)}]}).encode()

    def token(self, user: str, lifetime: float, audience: str = "kafka") -> str:
        """A token for `user` that is valid for `lifetime` seconds."""
        now = time.time()
        who = {"iss": ISSUER, "sub": user, "aud": audience, "scope": "kafka"}
        claims = {**who, "iat": int(now), "exp": int(now + lifetime)}
        head = {"alg": "RS256", "typ": "JWT", "kid": self._name}
        text = ".".join(_base64(json.dumps(part).encode()) for part in (head, claims))
        signature = self._key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{text}.{_base64(signature)}"


class Issuer:
    """An endpoint that gives tokens (OAuth's client credentials, in a header or in the form) to who knows `PASSWORD`,
    and the keys that they are signed with. `lifetime`: of each, in seconds. `fails`: what it answers instead of a
    token; None: it gives them."""

    def __init__(self, signer: Signer, lifetime: float = 60.0) -> None:
        self.lifetime = lifetime
        self.audience = "kafka"
        self.fails: tuple[int, bytes] | None = None
        self.given = 0
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                user, word = (form.get(name, [""])[0] for name in ("client_id", "client_secret"))
                if login := self.headers["Authorization"]:
                    user, _, word = base64.b64decode(login.split()[1]).decode().partition(":")
                token = signer.token(user, issuer.lifetime, issuer.audience)
                body = {"access_token": token, "token_type": "Bearer", "expires_in": issuer.lifetime}
                status, answer = 200, json.dumps(body).encode()
                if word != PASSWORD:
                    status, answer = 401, b'{"error": "invalid_client"}'
                if issuer.fails is not None:
                    status, answer = issuer.fails
                issuer.given += status == 200
                self._answer(status, answer)

            def do_GET(self) -> None:
                self._answer(200, signer.key_set())

            def _answer(self, status: int, answer: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/token"
        self.keys_url = f"http://127.0.0.1:{self._server.server_port}/keys"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class SecuredBroker(RealBroker):
    """See the module. `authority` signs its certificate; the broker's files are in `folder`."""

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", **settings: str | int) -> None:
        super().__init__(folder / "broker", **settings)
        self.folder = folder
        self.authority = Authority(folder, "kafka-ca")
        self.signer = Signer()
        keys = folder / "keys.json"
        keys.write_bytes(self.signer.key_set())
        self._key_set_url = keys.as_uri()
        tls, mutual, sasl = (f"127.0.0.1:{port}" for port in free_ports(3))
        self.tls, self.mutual, self.sasl = tls, mutual, sasl
        ours = f"TLS://{tls},MTLS://{mutual},SECURED://{sasl}"
        users = " ".join(f'user_{user}="{PASSWORD}"' for user in USERS)
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required"
        token = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required"
        validator = "org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler"
        self._certificate = folder / "broker.pem"
        self.renew_certificate(host=host)
        self.settings = {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self._certificate),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.authority.file),
            "listener.name.mtls.ssl.client.auth": "required",
            "ssl.principal.mapping.rules": "RULE:^CN=([^,]+).*$/$1/,DEFAULT",
            "listener.name.secured.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512,OAUTHBEARER",
            "listener.name.secured.plain.sasl.jaas.config": f"{plain} {users};",
            "listener.name.secured.scram-sha-512.sasl.jaas.config": f"{scram};",
            "listener.name.secured.oauthbearer.sasl.jaas.config": f"{token};",
            "listener.name.secured.oauthbearer.sasl.server.callback.handler.class": validator,
            # A connection lasts no longer than the token that it was made with.
            "listener.name.secured.oauthbearer.connections.max.reauth.ms": 60_000,
            "sasl.oauthbearer.jwks.endpoint.url": self._key_set_url,
            "sasl.oauthbearer.expected.audience": "kafka",
            "sasl.oauthbearer.expected.issuer": ISSUER,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            **self.settings,
        }
        self._listeners = ours

    def properties(self) -> dict[str, str | int]:
        """See `RealBroker`."""
        found = super().properties()
        for name in ("listeners", "advertised.listeners"):
            found[name] = f"{found[name]},{self._listeners}"
        more = "TLS:SSL,MTLS:SSL,SECURED:SASL_SSL"
        found["listener.security.protocol.map"] = f"{found['listener.security.protocol.map']},{more}"
        return found

    def java_options(self) -> Sequence[str]:
        """See `RealBroker`."""
        return [f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={self._key_set_url}"]

    def renew_certificate(self, **how: Any) -> None:
        """Give the broker another certificate (`Authority.issue`), which it reads at its start."""
        self._certificate.write_bytes(self.authority.issue(**how).read_bytes())

    # -- how clients reach it

    @property
    def plain(self) -> Kafka:
        """Its plain listener, where everything is allowed."""
        return Kafka(self.bootstrap_servers, "real")

    def grant_all(self, *users: str) -> None:
        """Give these users every right on topics, groups, transactions and the cluster."""
        kinds = (ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID, ResourceType.BROKER)
        self.grant(
            AclBinding(
                kind, "kafka-cluster" if kind is ResourceType.BROKER else "*", ResourcePatternType.LITERAL,
                f"User:{user}", "*", AclOperation.ALL, AclPermissionType.ALLOW,
            )
            for user in users
            for kind in kinds
        )  # fmt: skip

    def over_tls(self) -> Properties:
        """TLS alone."""
        return {
            "bootstrap.servers": self.tls,
            "security.protocol": "SSL",
            "ssl.ca.location": str(self.authority.file),
        }

    def over_mutual_tls(self, user: str) -> Properties:
        """TLS with a client certificate."""
        certificate = str(self.authority.issue(host=user))
        return {
            **self.over_tls(),
            "bootstrap.servers": self.mutual,
            "ssl.certificate.location": certificate,
            "ssl.key.location": certificate,
        }

    def with_login(self, user: str, mechanism: str = "PLAIN") -> Properties:
        """TLS with a password."""
        return {
            **self.over_tls(),
            "bootstrap.servers": self.sasl,
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": mechanism,
            "sasl.username": user,
            "sasl.password": PASSWORD,
        }

    def with_token(self, endpoint: str, user: str) -> Properties:
        """TLS with a token of the `endpoint`."""
        return {
            **self.over_tls(),
            "bootstrap.servers": self.sasl,
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "OAUTHBEARER",
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.client.id": user,
            "sasl.oauthbearer.client.secret": PASSWORD,
            "sasl.oauthbearer.token.endpoint.url": endpoint,
        }

    # -- its users and their rights

    def admin(self) -> AdminClient:
        """A client that may do everything."""
        return AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})

    def add_scram_users(self, users: Iterable[str] = USERS, password: str = PASSWORD) -> None:
        """Let these users log in with SCRAM-SHA-512."""
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        wanted: list[UserScramCredentialAlteration] = [
            UserScramCredentialUpsertion(user, info, password.encode()) for user in users
        ]
        admin = self.admin()
        for done in admin.alter_user_scram_credentials(wanted).values():
            done.result(WITHIN)

    def grant(self, bindings: Iterable[AclBinding]) -> None:
        """Grant these rights."""
        wanted = list(bindings)
        admin = self.admin()
        for done in admin.create_acls(wanted).values() if wanted else ():
            done.result(WITHIN)

    def take_back_all(self) -> None:
        """Remove every right of every user but the anonymous one."""
        omitted = cast(Any, None)  # the package's annotations do not say that a filter may leave things out
        every = AclBindingFilter(
            ResourceType.ANY, omitted, ResourcePatternType.ANY, omitted, omitted, AclOperation.ANY,
            AclPermissionType.ANY,
        )  # fmt: skip
        admin = self.admin()
        for done in admin.delete_acls([every]).values():
            done.result(WITHIN)


def environment(properties: Mapping[str, str | int | float | bool]) -> dict[str, str]:
    """These properties as the service's variables."""
    return {f"KAFKA_{name.upper().replace('.', '_')}": str(value) for name, value in properties.items()}


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _number(value: int) -> str:
    return _base64(value.to_bytes((value.bit_length() + 7) // 8, "big"))
