"""The chart's values: one table in its README has them all, and what the chart passes on goes into pods as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from consumer.settings import load
from tests.deploy.rendering import CHART, Manifest, Rendered, rendered, template
from tests.deploy.values import EXTRA, KINDS, SECRET

SCHEMA = json.loads((CHART / "values.schema.json").read_text("utf-8"))
VALUES = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))

_LONG = 60  # characters: a longer default would make the table unreadable


def documented(schema: Any, values: Any, path: str = "") -> Iterator[str]:
    """A row of the table for every value that the schema describes, with its default."""
    for name, one in schema.get("properties", {}).items():
        default = values.get(name, one.get("default")) if isinstance(values, dict) else one.get("default")
        if "description" not in one:
            yield from documented(one, default, f"{path}{name}.")
        elif name != "global":
            text = default if isinstance(default, str) else json.dumps(default)
            shown = f"`{text}` " if len(text) < _LONG else "[values.yaml](values.yaml) "
            yield f"| `{path}{name}` | {'' if default in ('', None, [], {}) else shown}| {one['description']} |"


class TestDocumented:
    """What a value means stands in the schema, for editors; the README's table repeats it."""

    def test_the_table_is_the_schema_s_with_the_defaults_of_values(self) -> None:
        """Every value, its default in values.yaml (or in the schema, for one of the two flavours), its meaning."""
        table = (CHART / "README.md").read_text("utf-8").partition("## Values\n")[2].partition("\n## ")[0]
        rows = [line for line in table.splitlines() if line.startswith("| `")]
        assert rows == list(documented(SCHEMA, VALUES))

    def test_the_schema_knows_exactly_the_values(self) -> None:
        """One that the schema lacked would be refused, and one that values.yaml lacked would have no default."""
        assert set(VALUES) == set(SCHEMA["properties"]) - {"global"} == set(SCHEMA["required"])

    def test_the_defaults_of_the_flavours_are_those_that_are_rendered(self) -> None:
        """They stand in the templates, since the section of the other flavour has to stay empty."""

        def default(*path: str) -> Any:
            node = SCHEMA
            for one in path:
                node = node["properties"][one]
            return node["default"]

        spec = rendered("statefulset", "statefulSet={}").workload()["spec"]
        assert spec["replicas"] == default("statefulSet", "replicas")
        assert spec["updateStrategy"]["rollingUpdate"] == {"partition": default("statefulSet", "partition")}
        [claim] = spec["volumeClaimTemplates"]
        assert claim["spec"]["resources"]["requests"]["storage"] == default("statefulSet", "storage", "size")
        scaled = rendered("deployment").one("ScaledObject")["spec"]
        assert scaled["minReplicaCount"] == default("deployment", "minReplicas")
        [trigger] = scaled["triggers"]
        assert trigger["metadata"]["lagThreshold"] == str(default("deployment", "lagThreshold"))


@pytest.fixture(params=KINDS)
def chart(request: pytest.FixtureRequest) -> Rendered:
    """Both kinds of workload, with all that the chart passes on."""
    return rendered(str(request.param), *EXTRA)


@pytest.fixture(params=["a member", "helm test"])
def pod(request: pytest.FixtureRequest, chart: Rendered) -> Manifest:
    """The pod of a member, and that of `helm test`: both have to reach and to read the same."""
    template: Manifest = chart.workload()["spec"]["template"]
    return template if request.param == "a member" else chart.one("Pod", "pinstream-check")


def pinstream(pod: Manifest) -> Manifest:
    """pinstream's own container."""
    [found] = [one for one in pod["spec"]["containers"] if one["name"] == "pinstream"]
    return dict(found)


class TestPassedOn:
    """What Kubernetes has and the chart has no word for."""

    def test_into_the_pod(self, pod: Manifest) -> None:
        """Variables, also from another place, mounts, volumes, containers that come first, where it runs, labels and
        annotations; an image by its digest instead of the tag. pinstream's own stay. What is null is omitted, as
        OpenShift's restricted-v2 asks."""
        container = pinstream(pod)
        address = {"fieldRef": {"fieldPath": "status.podIP"}}
        assert container["env"][-2:] == [{"name": "TZ", "value": "UTC"}, {"name": "IP", "valueFrom": address}]
        assert container["env"][0]["name"] == "KAFKA_BOOTSTRAP_SERVERS"
        assert container["envFrom"] == [{"secretRef": {"name": "more"}}]
        assert container["volumeMounts"][-1] == {"name": "own", "mountPath": "/mnt/own", "readOnly": True}
        spec, metadata = pod["spec"], pod["metadata"]
        assert {one["name"] for one in spec["volumes"]} >= {"own", "secrets", "mapping"}
        assert spec["initContainers"] == [{"name": "first", "image": "first:1"}]
        assert "requiredDuringSchedulingIgnoredDuringExecution" in spec["affinity"]["nodeAffinity"]
        assert metadata["labels"].items() >= {"team": "ads", "own": "yes"}.items()
        annotations = {"reloader.stakater.com/auto": "true", "vault.hashicorp.com/agent-inject": "true"}
        assert metadata["annotations"].items() >= annotations.items()
        assert pinstream(pod)["image"] == f"registry.example.com/pinstream@sha256:{'0a' * 32}"
        assert pod["spec"]["securityContext"] == {
            "runAsNonRoot": True,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert not {"runAsUser", "runAsGroup"} & pinstream(pod)["securityContext"].keys()

    def test_to_members_and_to_every_object(self, chart: Rendered) -> None:
        """To members alone: arguments of `run`, a spread, and containers beside it, with which the pod of `helm test`
        would never end. To every object: `commonLabels` and `commonAnnotations`; a selector, which cannot be changed
        later, has none of them."""
        assert chart.container()["args"] == ["run", "--workers", "2"]
        assert {"name": "beside", "image": "beside:1"} in chart.pod()["containers"]
        assert [one["topologyKey"] for one in chart.pod()["topologySpreadConstraints"]] == ["rack"]
        check = chart.one("Pod", "pinstream-check")
        assert [(one["name"], one["args"]) for one in check["spec"]["containers"]] == [
            ("pinstream", ["check"])
        ]
        for one in chart.manifests:
            assert one["metadata"]["labels"]["team"] == "ads", one["kind"]
            assert one["metadata"]["annotations"]["reloader.stakater.com/auto"] == "true", one["kind"]
        assert chart.one("ServiceAccount")["metadata"]["annotations"]["role"] == "shop"
        assert chart.workload()["spec"]["selector"]["matchLabels"].keys() == {
            "app.kubernetes.io/name",
            "app.kubernetes.io/instance",
        }

    @pytest.mark.parametrize(
        "other",
        [
            'settings.PINTEREST_ACCESS_TOKEN_FILE="/mnt/own/token"',
            f'extraEnv=[{{"name": "PINTEREST_ACCESS_TOKEN", "valueFrom": {{"secretKeyRef": {json.dumps(SECRET)}}}}}]',
            'extraEnvFrom=[{"secretRef": {"name": "more"}}]',
        ],
    )
    def test_the_access_token_may_come_from_in_another_place(self, other: str) -> None:
        """From a file of one's own volume, or from a variable, and then no Secret has to be named."""
        chart = rendered("statefulset", "secrets.PINTEREST_ACCESS_TOKEN=null", other)
        [volume] = [one for one in chart.pod()["volumes"] if one["name"] == "secrets"]
        assert "PINTEREST_ACCESS_TOKEN" not in json.dumps(volume)

    @pytest.mark.parametrize(
        ("assignment", "where"),
        [
            ('image.digest="latest"', "at '/image/digest'"),
            ("statefulSet.partition=-1", "at '/statefulSet/partition'"),
            ('networkPolicy.to=[{"cidr": "10.0.0.0/8"}]', "at '/networkPolicy/to/0'"),
            ('networkPolicy.to=[{"ipBlock": {"cidr": "10.0.0.1"}}]', "at '/networkPolicy/to/0/ipBlock/cidr'"),
            ('extraEnv=[{"name": "A", "value": 1}]', "at '/extraEnv/0/value': got number, want string"),
            ('extraVolumes=[{"emptyDir": {}}]', "at '/extraVolumes/0': missing property 'name'"),
            ('extraVolumeMounts=[{"name": "a"}]', "at '/extraVolumeMounts/0': missing property 'mountPath'"),
            ('extraArgs="--workers 2"', "at '/extraArgs': got string, want array"),
            ('commonLabels={"a": true}', "at '/commonLabels/a'"),
        ],
    )
    def test_the_schema_says_where_a_wrong_one_is(self, assignment: str, where: str) -> None:
        """Before anything reaches the cluster."""
        done = template("statefulset", assignment)
        assert done.returncode == 1
        assert where in done.stderr


class TestHelmTest:
    """`helm test` runs `pinstream check` as the members run."""

    @pytest.mark.parametrize("example", KINDS)
    def test_it_is_a_member_but_for_what_it_runs(self, example: str) -> None:
        """The same image, variables, Secrets, account and user; a folder of its own for its state, and settings that
        `check` reads as `run` does. Only the network policy selects it, so that it reaches what members reach: no
        budget or monitor does."""
        chart = rendered(example)
        check, member = chart.one("Pod", "pinstream-check")["spec"], chart.pod()
        same = {"serviceAccountName", "automountServiceAccountToken", "enableServiceLinks", "securityContext"}
        assert {name: check[name] for name in same} == {name: member[name] for name in same}
        one, other = check["containers"][0], chart.container()
        assert one.keys() == other.keys() - {"ports", "startupProbe", "livenessProbe", "readinessProbe"}
        assert {name for name in one if one[name] != other[name]} == {"args"}
        assert check["restartPolicy"] == "Never"
        assert {"name": "state", "emptyDir": {}} in check["volumes"]
        assert [one for one in check["volumes"] if one["name"] != "state"] == [
            one for one in member["volumes"] if one["name"] != "state"
        ]
        chart = rendered(example)
        metadata = chart.one("Pod", "pinstream-check")["metadata"]
        assert metadata["annotations"]["helm.sh/hook"] == "test"
        selected = chart.one("NetworkPolicy")["spec"]["podSelector"]
        assert selected["matchLabels"].items() <= metadata["labels"].items()
        assert metadata["labels"]["app.kubernetes.io/name"] in selected["matchExpressions"][0]["values"]
        members = chart.workload()["spec"]["selector"]["matchLabels"]
        assert not members.items() <= metadata["labels"].items()
        variables = {
            one["name"]: one.get("value", "pinstream-check")
            for one in rendered(example).one("Pod", "pinstream-check")["spec"]["containers"][0]["env"]
        }
        plain = {name: text for name, text in variables.items() if "/etc/pinstream/" not in text}
        assert load({**plain, "HOME": "/", "PINTEREST_ACCESS_TOKEN": "t"}).kafka.group_id == "pinstream"
