"""Every manifest of the chart and its examples, held against the schemas of Kubernetes and of the operators, offline.

A field that the schema does not know is an error, as it is for `kubectl apply --validate=strict`. tools.sh beside this
file says where the schemas come from.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from consumer.commands.check.rights import strimzi as printed_for_strimzi
from consumer.settings import load
from tests.deploy.rendering import EXAMPLES, NEWEST, OLDEST, TARGET, Manifest, rendered
from tests.deploy.values import KINDS, SETS

OPERATORS = ("keda.sh", "monitoring.coreos.com", "kafka.strimzi.io")
IN_THE_WHEEL = "kubernetes_validate/kubernetes-json-schema/v{version}-local-strict/{file}"


@cache
def wheel() -> zipfile.ZipFile:
    """The package with the schemas of Kubernetes. Without it the test is skipped, but fails in CI."""
    found = sorted(TARGET.glob("kubernetes_validate-*.whl"))
    if not found:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail("kubernetes-validate is not installed: make tests/deploy/target/.ready")
        pytest.skip("kubernetes-validate is not installed: make tests/deploy/target/.ready")
    return zipfile.ZipFile(found[0])


def read(version: str, file: str) -> Resource[Any]:
    """One file of the Kubernetes schemas."""
    return DRAFT202012.create_resource(
        json.loads(wheel().read(IN_THE_WHEEL.format(version=version, file=file)))
    )


@cache
def definitions(version: str) -> Registry[Any]:
    """The definitions that the schemas of one version refer to."""
    one = read(version, "_definitions.json")
    return Registry[Any]().with_resources([("_definitions.json", one), ("/api/_definitions.json", one)])


@cache
def of_kubernetes(version: str, name: str) -> Validator:
    """The schema of one kind of Kubernetes itself, such as ``statefulset-apps-v1``."""
    registry = definitions(version)
    return Draft202012Validator(read(version, f"{name}.json").contents, registry=registry)


@cache
def of_operators() -> dict[tuple[str, str], Validator]:
    """apiVersion and kind -> schema, for every custom resource definition."""
    wheel()  # both are there or neither
    found: dict[tuple[str, str], Validator] = {}
    for path in sorted((TARGET / "crds").glob("*.yaml")):
        spec = yaml.load(path.read_text("utf-8"), yaml.CSafeLoader)["spec"]
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = Draft202012Validator(schema)
    return found


def strict(schema: Any, *, top: bool = True) -> Any:
    """A structural schema as the API server applies it: unknown fields are not allowed."""
    if isinstance(schema, list):
        return [strict(one, top=False) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {name: strict(one, top=False) for name, one in schema.items()}
    if isinstance(schema.get("properties"), dict):
        made["properties"] = {name: strict(one, top=False) for name, one in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    if top:
        made["properties"]["metadata"] = {"type": "object"}  # checked with the objects of Kubernetes
    return made


def errors(manifest: Manifest, version: str) -> list[str]:
    """What is wrong with a manifest, with its place and the schema's message."""
    group, _, api = manifest["apiVersion"].rpartition("/")
    if group in OPERATORS:
        validator = of_operators()[manifest["apiVersion"], manifest["kind"]]
    else:
        short = "-".join(part for part in (group.removesuffix(".k8s.io"), api) if part)
        validator = of_kubernetes(version, f"{manifest['kind'].lower()}-{short}")
    return [f"{error.json_path}: {error.message}"[:300] for error in validator.iter_errors(manifest)]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize(("example", "values"), SETS)
def test_every_manifest_is_valid(example: str, values: tuple[str, ...], version: str) -> None:
    """For the oldest and the newest Kubernetes with schemas, over all sets of values."""
    wrong = {
        f"{one['kind']} {one['metadata']['name']}": found
        for one in rendered(example, *values, version=version).manifests
        if (found := errors(one, version))
    }
    assert wrong == {}


def strimzi() -> Iterator[Manifest]:
    """The example for Strimzi."""
    yield from yaml.safe_load_all((EXAMPLES / "strimzi.yaml").read_text("utf-8"))


@pytest.mark.parametrize("version", ["v1", "v1beta2"])
def test_strimzi_takes_the_example(version: str) -> None:
    """Topics and user have the form that its operators read; with the other version's name, also those before 0.49."""
    api = f"kafka.strimzi.io/{version}"
    wrong = {
        one["metadata"]["name"]: found
        for one in strimzi()
        if (found := errors({**one, "apiVersion": api}, NEWEST))
    }
    assert wrong == {}


def test_strimzi_takes_what_check_prints() -> None:
    """`pinstream check --rights strimzi` has the version of the example, and the form of a KafkaUser."""
    environment = {"HOME": "/", "PINTEREST_ACCESS_TOKEN": "t", **rendered("statefulset").environment()}
    plain = {name: text for name, text in environment.items() if "/etc/pinstream/" not in text}
    user = yaml.safe_load(printed_for_strimzi(load(plain)))
    assert user["apiVersion"] == next(strimzi())["apiVersion"]
    assert errors(user, NEWEST) == []


def test_topics_and_user_are_those_of_the_values() -> None:
    """They are what the chart's examples read, write, join and log in with: the least that pinstream needs."""
    found = list(strimzi())
    topics = {one["metadata"]["name"] for one in found if one["kind"] == "KafkaTopic"}
    [user] = [one for one in found if one["kind"] == "KafkaUser"]
    for example in KINDS:
        environment = rendered(example).environment()
        assert topics == {environment["KAFKA_TOPICS"], f"{environment['KAFKA_TOPICS']}.dead-letters"}
        assert environment["KAFKA_SASL_USERNAME"] == user["metadata"]["name"]
        assert environment["KAFKA_SASL_MECHANISM"].lower() == user["spec"]["authentication"]["type"]
        assert environment["KAFKA_GROUP_ID"] == "pinstream"
    rights = {
        (acl["resource"]["type"], acl["resource"]["name"]): set(acl["operations"])
        for acl in user["spec"]["authorization"]["acls"]
    }
    assert all(acl["resource"]["patternType"] == "literal" for acl in user["spec"]["authorization"]["acls"])
    assert rights == {
        ("topic", "orders"): {"Read", "DescribeConfigs"},
        ("topic", "orders.dead-letters"): {"Write", "DescribeConfigs"},
        ("group", "pinstream"): {"Read"},
    }


@pytest.mark.parametrize(
    ("example", "kind", "path", "value"),
    [
        ("statefulset", "StatefulSet", ("spec", "template", "spec", "containers", 0, "image"), 1),
        ("statefulset", "StatefulSet", ("spec", "template", "spec", "readOnly"), True),
        ("statefulset", "StatefulSet", ("spec", "selector"), None),
        ("statefulset", "NetworkPolicy", ("spec", "egress", 0, "port"), 53),
        ("deployment", "ScaledObject", ("spec", "triggers", 0, "metadata", "lagThreshold"), 50000),
        ("deployment", "ScaledObject", ("spec", "maxReplicas"), 3),
        ("deployment", "PodMonitor", ("spec", "podMetricsEndpoints", 0, "bearer"), "x"),
        ("deployment", "PrometheusRule", ("spec", "groups", 0, "rules", 0, "expr"), None),
    ],
)
def test_a_mistake_is_found(example: str, kind: str, path: tuple[Any, ...], value: Any) -> None:
    """A wrong type, an unknown field and a missing one are found, so the test really reads the manifests."""
    manifest = json.loads(json.dumps(rendered(example).one(kind)))
    place = manifest
    for one in path[:-1]:
        place = place[one]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    assert errors(manifest, NEWEST)
