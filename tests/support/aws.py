"""Amazon for tests: a stand-in for the signer of MSK's tokens, and stubs of the Glue Schema Registry and of STS."""

from __future__ import annotations

import json
import threading
import uuid
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.kafka.secured import PASSWORD, Issuer

_SIGNER = '''
import base64, json, os, time, urllib.request

class MSKAuthTokenProvider:
    @staticmethod
    def generate_auth_token_from_credentials_provider(region, provider):
        """A token of the tests' issuer, for the user whose name is the access key."""
        found = provider.load()
        login = base64.b64encode(f"{found.access_key}:{found.secret_key}".encode()).decode()
        request = urllib.request.Request(os.environ["TESTS_ISSUER"], data=region.encode(), method="POST")
        request.add_header("Authorization", f"Basic {login}")
        with urllib.request.urlopen(request, timeout=5) as answer:
            given = json.load(answer)
        return given["access_token"], (time.time() + given["expires_in"]) * 1000
'''


def with_iam(folder: Path, issuer: Issuer, user: str) -> dict[str, str]:
    """The variables with which a process logs in as `user` by IAM, with the stand-in for its signer in `folder`."""
    module = folder / "signer" / "aws_msk_iam_sasl_signer.py"
    module.parent.mkdir(exist_ok=True)
    module.write_text(_SIGNER)
    return {
        "PYTHONPATH": str(module.parent),
        "TESTS_ISSUER": issuer.url,
        "KAFKA_SASL_MECHANISM": "AWS_MSK_IAM",
        "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": user,
        "AWS_SECRET_ACCESS_KEY": PASSWORD,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


class Glue:
    """A stub of the Glue Schema Registry: ``GetSchemaVersion`` alone, as AWS documents it. `versions`: by UUID, what it
    answers. `fails`: a status and an error's code that it answers instead; None: it answers."""

    def __init__(self) -> None:
        self.versions: dict[str, dict[str, str]] = {}
        self.fails: tuple[int, str] | None = None
        self.asked: list[str] = []
        glue = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.headers["X-Amz-Target"] == "AWSGlue.GetSchemaVersion"
                assert "/glue/aws4_request" in self.headers["Authorization"]
                glue.asked.append(body["SchemaVersionId"])
                status, answer = 200, glue.versions.get(body["SchemaVersionId"])
                failure = glue.fails or (None if answer else (400, "EntityNotFoundException"))
                if failure is not None:
                    status, answer = (
                        failure[0],
                        {"__type": failure[1], "Message": f"{failure[1]} of the tests"},
                    )
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def add(self, schema: object, kind: str = "AVRO", status: str = "AVAILABLE") -> str:
        """Add a new schema version and return its UUID."""
        version = str(uuid.uuid4())
        text = schema if isinstance(schema, str) else json.dumps(schema)
        self.versions[version] = {
            "SchemaVersionId": version, "SchemaDefinition": text, "DataFormat": kind, "Status": status,
        }  # fmt: skip
        return version

    def variables(self) -> dict[str, str]:
        """The variables with which a process asks this stub."""
        return {
            "SCHEMA_REGISTRY_URL": "glue:eu-west-1",
            "AWS_ENDPOINT_URL_GLUE": self.url,
            "AWS_ACCESS_KEY_ID": "AKIDTESTS",
            "AWS_SECRET_ACCESS_KEY": PASSWORD,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


_ASSUMED = f"""<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>ASIAROLE</AccessKeyId>
<SecretAccessKey>{PASSWORD}</SecretAccessKey><SessionToken>session</SessionToken>
<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>"""
_DENIED = """<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>
<Code>AccessDenied</Code><Message>Not authorized to perform sts:AssumeRoleWithWebIdentity</Message></Error>
</ErrorResponse>"""


class Sts:
    """A stub of AWS's token service, which gives a pod the credentials of its role. `refuses`: it gives none. `asked`:
    the last request's body."""

    def __init__(self) -> None:
        self.refuses = False
        self.asked = ""
        sts = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sts.asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
                body = (_DENIED if sts.refuses else _ASSUMED).encode()
                self.send_response(403 if sts.refuses else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def variables(self, token: str) -> dict[str, str]:
        """The variables of a pod with a role, as EKS sets them; `token`: the path of the pod's own token."""
        return {
            "AWS_ENDPOINT_URL_STS": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/pinstream",
            "AWS_WEB_IDENTITY_TOKEN_FILE": token,
        }

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def glue_value(version: str, datum: bytes, *, zipped: bool = False) -> bytes:
    """A record's value as Glue's serialisers write it."""
    head = b"\x03" + (b"\x05" if zipped else b"\x00") + uuid.UUID(version).bytes
    return head + (zlib.compress(datum) if zipped else datum)
