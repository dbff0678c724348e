"""Amazon for tests: a stand-in for the signer of MSK's tokens, and the variables of AWS."""

from __future__ import annotations

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
    """The variables with which a process logs in as `user` by IAM: its signer is the stand-in, in `folder`."""
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
