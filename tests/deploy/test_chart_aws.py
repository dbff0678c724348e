"""The chart on AWS: Amazon MSK with IAM and schemas from Glue, with a role for the members."""

from __future__ import annotations

from consumer.settings import load
from tests.deploy.rendering import rendered

ROLE = "arn:aws:iam::123456789012:role/pinstream"


def test_msk_and_glue() -> None:
    """The service account has the role, the members reach brokers and AWS, and the settings fit together."""
    chart = rendered(
        "statefulset",
        'kafka.bootstrapServers="b-1.x.y.c1.kafka.eu-west-1.amazonaws.com:9098"',
        'settings={"KAFKA_SASL_MECHANISM": "AWS_MSK_IAM", "PINTEREST_API_URL": "http://sandbox:8000/v5"}',
        *(
            'schemaRegistryUrl="glue:eu-west-1"',
            'secrets={"PINTEREST_ACCESS_TOKEN": {"name": "p", "key": "t"}}',
        ),
        *("secrets.KAFKA_SASL_PASSWORD=null", "secrets.KAFKA_SSL_CA_LOCATION=null"),
        f'serviceAccountAnnotations={{"eks.amazonaws.com/role-arn": "{ROLE}"}}',
    )
    account = chart.one("ServiceAccount")
    assert account["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": ROLE}
    assert chart.pod()["serviceAccountName"] == account["metadata"]["name"]
    ports = chart.one("NetworkPolicy")["spec"]["egress"][1]["ports"]
    assert [one["port"] for one in ports] == [9098, 8000, 443]
    variables = {name: text for name, text in chart.environment().items() if not name.endswith("_FILE")}
    settings = load({**variables, "HOME": "/", "PINTEREST_ACCESS_TOKEN": "t"})
    assert settings.kafka.uses_iam
    assert settings.registry.is_glue
    assert "annotations" not in rendered("statefulset").one("ServiceAccount")["metadata"]
