"""deploy/helm/pinstream, rendered: what each kind of workload has, that they exclude each other, that it fits together.

helm is built from its Go module (`make tests/deploy/target/.ready`). Nothing here needs a cluster.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from consumer import __version__
from consumer.adapters.key_store.shared.address import parse_address
from consumer.settings import all_settings, load
from consumer.settings.passthrough import is_secret
from consumer.settings.values import parse_duration
from tests.deploy.rendering import (
    CHART,
    EXAMPLES,
    OLDEST,
    ROOT,
    Rendered,
    rendered,
    run_helm,
    template,
)
from tests.deploy.values import FLAVOURS, KINDS, MATRIX, SECRET

SHARED = {"Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy"}


@pytest.fixture(params=KINDS)
def example(request: pytest.FixtureRequest) -> str:
    """One of the examples: there is one for each kind of workload."""
    return str(request.param)


@pytest.fixture(params=MATRIX)
def chart(request: pytest.FixtureRequest, example: str) -> Rendered:
    """Each set of values for each kind of workload."""
    return rendered(example, *MATRIX[request.param])


class TestLint:
    """helm lint finds nothing."""

    def test_without_values(self) -> None:
        """The bare chart; helm says as information which values it requires."""
        done = run_helm("lint", "--strict", str(CHART))
        assert done.returncode == 0, done.stdout

    def test_with_those_of_the_examples(self, example: str) -> None:
        """No warning and no error; `helm template` alone renders the same, though helm then takes the version it was
        built for."""
        done = run_helm("lint", "--strict", str(CHART), "--values", str(EXAMPLES / f"{example}.yaml"))
        assert done.returncode == 0, done.stdout
        assert "WARNING" not in done.stdout
        assert rendered(example, version="").manifests == rendered(example, version=OLDEST).manifests

    def test_its_version_is_the_program_s(self) -> None:
        """Chart, program and the image's tag have one version."""
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
        assert {chart["version"], chart["appVersion"]} == {__version__}
        assert rendered("statefulset").container()["image"] == f"registry.example.com/pinstream:{__version__}"


REFUSED = {
    "statefulset": [
        ('deployment={"maxReplicas": 3}', "kind=StatefulSet and deployment contradict each other"),
        ('podLabels={"app.kubernetes.io/name": "x"}', "app.kubernetes.io/name is set by the chart"),
        ('commonLabels={"helm.sh/chart": "x"}', "helm.sh/chart is set by the chart"),
        ('settings.PINSTREAM_KEY_STORE="redis://r"', "settings.PINSTREAM_KEY_STORE: the chart sets it"),
        ('settings.PINTEREST_ACCESS_TOKEN="x"', "would stand in plain text"),
        ('settings.KAFKA_SASL_PASSWORD="x"', "would stand in plain text"),
        ('settings.OTEL_EXPORTER_OTLP_HEADERS="a=b"', "would stand in plain text"),
        ('settings.KAFKA_SSL_CA_LOCATION="/ca"', "KAFKA_SSL_CA_LOCATION is set twice"),
        ('settings.PINTEREST_ACCESS_TOKEN_FILE="/token"', "PINTEREST_ACCESS_TOKEN_FILE is set twice"),
        (
            'extraEnv=[{"name": "PINSTREAM_HTTP_TOKEN", "value": "x"}]',
            "extraEnv.PINSTREAM_HTTP_TOKEN is a secret and would stand in plain text",
        ),
        (
            'extraEnv=[{"name": "PINSTREAM_KEY_STORE", "value": "redis://r"}]',
            "extraEnv.PINSTREAM_KEY_STORE: the chart sets it",
        ),
        ('settings.HTTPS_PROXY="http://u:pw@proxy:3128"', "has a password in it"),
        ('settings.FOO="1"', "settings.FOO is no setting: they begin with KAFKA_, "),
        (
            f"secrets.KAFKA_SASL_USERNAME={json.dumps(SECRET)}",
            "secrets.KAFKA_SASL_USERNAME is no setting that is read from a file",
        ),
        (f"accessTokens.first={json.dumps(SECRET)}", 'accessTokens has "first", which is no ad account'),
        ('schemas={"a.json": "{}"}', 'schemas has "a.json": name the file like event.avsc'),
        ('python={"my-code.py": ""}', 'python has "my-code.py", which cannot be imported'),
        ('image.repository=""', "image.repository is not set"),
        ('kafka.bootstrapServers=""', "kafka.bootstrapServers is not set"),
        ("kafka.topics=[]", "kafka.topics is empty"),
        ('adAccountId=""', "adAccountId is not set"),
        ("secrets.PINTEREST_ACCESS_TOKEN=null", "secrets.PINTEREST_ACCESS_TOKEN is not set"),
        (f'accessTokens={{"549755885175": {json.dumps(SECRET)}}}', "are both set: keep the one"),
    ],
    "deployment": [
        ('kind="StatefulSet"', "kind=StatefulSet and deployment contradict each other"),
        ('statefulSet={"replicas": 2}', "kind=Deployment and statefulSet contradict each other"),
        ("deployment.keyStore=null", "kind=Deployment needs deployment.keyStore.url=redis://"),
        ('deployment.keyStore.url="disk:/keys"', "kind=Deployment needs deployment.keyStore.url"),
        ('deployment.keyStore.url="redis://u:pw@r"', "has a password in it"),
        ('deployment.keyStore.url="redis://a,b:6380"', "names several hosts: add ?sentinel=NAME"),
        ("deployment.maxReplicas=null", "deployment.maxReplicas is not set"),
        ("deployment.replicas=3", "deployment.replicas contradicts minReplicas, maxReplicas"),
        ("deployment.minReplicas=13", "minReplicas is above deployment.maxReplicas"),
        ('settings.KAFKA_SASL_MECHANISM="GSSAPI"', "KEDA cannot sign in to Kafka"),
        ('extraEnv=[{"name": "PINSTREAM_SCHEMA", "value": "a.B"}]', "PINSTREAM_SCHEMA is set twice"),
    ],
}
"""What contradicts itself, by the example that it is set in, and what says so."""


class TestKinds:
    """A StatefulSet with a volume and static members, or a Deployment with a shared store and KEDA: never both."""

    def test_what_there_is(self, example: str) -> None:
        """The smallest set of values gives one workload and what it needs."""
        kinds = rendered(example, *MATRIX["without anything optional"]).kinds()
        own = {
            "statefulset": ["StatefulSet"],
            "deployment": ["Deployment", "ScaledObject", "TriggerAuthentication"],
        }
        assert kinds == sorted([*own[example], *SHARED - {"NetworkPolicy"}, "Pod"])

    def test_a_stateful_set_has_volumes_and_static_members(self) -> None:
        """The key store has a volume of its own, which stays; the pod's name is the member's."""
        chart = rendered("statefulset")
        spec = chart.workload()["spec"]
        assert spec["replicas"] == 3
        assert spec["serviceName"] == chart.one("Service")["metadata"]["name"]
        [claim] = spec["volumeClaimTemplates"]
        assert claim["spec"]["resources"]["requests"]["storage"] == "20Gi"
        assert {"name": "state", "mountPath": "/var/lib/pinstream"} in chart.container()["volumeMounts"]
        assert claim["metadata"]["name"] == "state"
        assert spec["persistentVolumeClaimRetentionPolicy"] == {
            "whenDeleted": "Retain",
            "whenScaled": "Retain",
        }
        [member] = [one for one in chart.container()["env"] if one["name"] == "KAFKA_GROUP_INSTANCE_ID"]
        assert member["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
        assert "PINSTREAM_KEY_STORE" not in chart.environment()

    def test_its_defaults(self) -> None:
        """Two members with 8 GiB each, twice what the key store grows to."""
        spec = rendered("statefulset", "statefulSet={}").workload()["spec"]
        assert spec["replicas"] == 2
        assert spec["volumeClaimTemplates"][0]["spec"] == {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "8Gi"}},
        }

    def test_a_deployment_shares_a_store_and_has_dynamic_members(self) -> None:
        """Members have no static name, their number is not fixed, and the store's certificate is a file."""
        chart = rendered("deployment")
        assert not {"KAFKA_GROUP_INSTANCE_ID"} & {one["name"] for one in chart.container()["env"]}
        assert "replicas" not in chart.workload()["spec"]
        assert chart.workload()["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        url = chart.environment()["PINSTREAM_KEY_STORE"]
        assert url == "rediss://pinstream@redis.shop.svc:6379?ca=/etc/pinstream/secrets/key-store-ca"
        assert parse_address(url).ca == "/etc/pinstream/secrets/key-store-ca"
        assert ("redis-tls", "ca.crt", "key-store-ca") in mounted(chart)

    def test_a_fixed_number_of_members_needs_no_keda(self) -> None:
        """`deployment.replicas` instead of the limits that KEDA keeps to: members share the store all the same."""
        chart = rendered("deployment", *FLAVOURS["a fixed number"][1:])
        assert chart.workload()["spec"]["replicas"] == 3
        assert not {"ScaledObject", "TriggerAuthentication"} & {*chart.kinds()}
        assert chart.environment()["PINSTREAM_KEY_STORE"].startswith("rediss://")

    def test_a_canary_takes_an_update_alone(self) -> None:
        """Members below the partition keep what they run."""
        spec = rendered(*FLAVOURS["a canary"]).workload()["spec"]
        assert spec["updateStrategy"] == {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}

    def test_keda_scales_it_by_the_lag_as_the_same_user(self) -> None:
        """It scales by each topic, or for a pattern by all that the group reads, with the members' login."""
        chart = rendered("deployment", 'kafka.topics=["orders", "^shop[.].*$"]')
        scaled = chart.one("ScaledObject")["spec"]
        assert scaled["scaleTargetRef"]["name"] == chart.workload()["metadata"]["name"]
        assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (2, 12)
        orders, pattern = (one["metadata"] for one in scaled["triggers"])
        environment = chart.environment()
        assert orders == {
            "bootstrapServers": environment["KAFKA_BOOTSTRAP_SERVERS"],
            "consumerGroup": environment["KAFKA_GROUP_ID"],
            "topic": "orders",
            "lagThreshold": "50000",
            "offsetResetPolicy": "earliest",
            "sasl": "scram_sha512",
            "tls": "enable",
        }
        assert pattern == {name: value for name, value in orders.items() if name != "topic"}
        signing = chart.one("TriggerAuthentication")["spec"]
        assert signing["env"] == [
            {"parameter": "username", "name": "KAFKA_SASL_USERNAME", "containerName": "pinstream"}
        ]
        assert {(one["parameter"], one["name"], one["key"]) for one in signing["secretTargetRef"]} == {
            ("password", "pinstream", "password"),
            ("ca", "my-cluster-cluster-ca-cert", "ca.crt"),
        }

    def test_keda_takes_the_user_from_wherever_it_is(self) -> None:
        """Also from a Secret, by the container's variable."""
        user = {"name": "KAFKA_SASL_USERNAME", "valueFrom": {"secretKeyRef": SECRET}}
        chart = rendered("deployment", "settings.KAFKA_SASL_USERNAME=null", f"extraEnv={json.dumps([user])}")
        [found] = chart.one("TriggerAuthentication")["spec"]["env"]
        assert (found["name"], found["containerName"]) == ("KAFKA_SASL_USERNAME", "pinstream")

    @pytest.mark.parametrize(
        ("example", "assignment", "sentence"),
        [(example, *pair) for example, pairs in REFUSED.items() for pair in pairs],
    )
    def test_contradictions_are_refused_in_one_sentence(
        self, example: str, assignment: str, sentence: str
    ) -> None:
        """Nothing is rendered, and one sentence says why."""
        done = template(example, assignment)
        assert (done.returncode, done.stdout) == (1, "")
        assert sentence in done.stderr

    @pytest.mark.parametrize(
        "assignment",
        [
            *(
                'kind="DaemonSet"',
                "adAccountId=549755885175",
                "replicas=3",
                "settings.KAFKA_X=1",
                "settings=null",
                "networkPolicy.from=null",
            ),
            *(
                'secrets.PINTEREST_ACCESS_TOKEN="plain"',
                'secrets.KAFKA_SASL_PASSWORD={"configMap": "a", "key": "b"}',
            ),
            "shutdownGraceSeconds=0",
        ],
    )
    def test_what_cannot_be_is_refused_by_the_schema_of_values(self, assignment: str) -> None:
        """Types, names and unknown values: `helm install` refuses them before it asks the cluster."""
        done = template("statefulset", assignment)
        assert "values don't meet the specifications of the schema" in done.stderr


def mounted(chart: Rendered) -> set[tuple[str, str, str]]:
    """Secret, key and file of every secret in the pod."""
    [volume] = [one for one in chart.pod()["volumes"] if one["name"] == "secrets"]
    return {
        (source["secret"]["name"], item["key"], item["path"])
        for source in volume["projected"]["sources"]
        for item in source["secret"]["items"]
    }


class TestTogether:
    """Names, labels, selectors and references match."""

    def test_names_labels_and_references(self, chart: Rendered) -> None:
        """All begin with the release's name and are in its namespace; two manifests of a kind never share a name. Every
        selector has labels that the pods have, and what is referred to exists. The service shows members that are not
        ready, since the page is read when something is wrong."""
        for one in chart.manifests:
            assert one["metadata"]["name"].startswith("pinstream")
            assert one["metadata"]["namespace"] == "shop"
        kinds = [(one["kind"], one["metadata"]["name"]) for one in chart.manifests]
        assert len(set(kinds)) == len(kinds)
        labels = chart.workload()["spec"]["template"]["metadata"]["labels"]
        found = selectors(chart)
        assert len(found) >= 5
        for where, selector in found:
            assert selector.items() <= labels.items(), where
        names = {(one["kind"], one["metadata"]["name"]) for one in chart.manifests}
        pod, container = chart.pod(), chart.container()
        assert ("ServiceAccount", pod["serviceAccountName"]) in names
        volumes = {one["name"] for one in pod["volumes"]}
        if "volumeClaimTemplates" in chart.workload()["spec"]:
            volumes.add("state")
        assert {one["name"] for one in container["volumeMounts"]} == volumes
        for volume in pod["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names
        assert container["ports"] == [{"name": "http", "containerPort": 8080}]
        assert chart.environment()["PINSTREAM_HTTP_ADDRESS"].endswith(":8080")
        if "ScaledObject" in chart.kinds():
            for trigger in chart.one("ScaledObject")["spec"]["triggers"]:
                if "authenticationRef" in trigger:
                    assert ("TriggerAuthentication", trigger["authenticationRef"]["name"]) in names
        spec = chart.one("Service")["spec"]
        assert spec["publishNotReadyAddresses"] is True
        assert spec["clusterIP"] == "None"

    def test_two_releases_do_not_meet(self, example: str) -> None:
        """Another release has other names, and selects only its own pods."""
        one, other = rendered(example), rendered(example, name="eu")
        assert {manifest["metadata"]["name"].split("-")[0] for manifest in other.manifests} == {"eu"}
        assert selectors(one) != selectors(other)

    def test_config_is_mounted_where_the_settings_check_and_changes_restart(self, example: str) -> None:
        """Schemas, mapping and Python modules are mounted as files; a checksum of their text restarts pods."""
        whole = rendered(example, *MATRIX["everything"])
        environment = whole.environment()
        mounts = {one["mountPath"] for one in whole.container()["volumeMounts"]}
        assert environment["PINSTREAM_SCHEMAS_DIR"] in mounts
        assert str(Path(environment["PINSTREAM_MAPPING_FILE"]).parent) in mounts
        assert environment["PYTHONPATH"] in mounts
        assert whole.one("ConfigMap", "pinstream-python")["data"].keys() == {"events.py"}
        assert whole.one("ConfigMap", "pinstream-schemas")["data"].keys() == {"a.avsc", "a.17.avsc"}
        assert whole.one("ConfigMap", "pinstream-mapping")["data"] == {"mapping.toml": "# none\n"}
        changed = rendered(example, *MATRIX["everything"], 'mapping="# other\\n"')
        labelled = rendered(example, *MATRIX["everything"], 'monitoring.interval="5s"')
        sums = [
            one.workload()["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
            for one in (whole, changed, labelled)
        ]
        assert sums[0] != sums[1]
        assert sums[0] == sums[2]

    def test_members_reach_what_the_addresses_name_and_nothing_else(self) -> None:
        """They reach DNS, Kafka, registry, API and key store by the ports in the values; named peers reach them."""
        policy = rendered("deployment").one("NetworkPolicy")["spec"]
        dns, others = policy["egress"]
        assert {one["port"] for one in dns["ports"]} == {53, 5353}
        assert [one["port"] for one in others["ports"]] == [9093, 443, 8081, 6379]
        [ingress] = policy["ingress"]
        assert ingress["ports"] == [{"port": "http", "protocol": "TCP"}]
        assert {"podSelector": {}} in ingress["from"]
        other = rendered(
            "deployment",
            'kafka.bootstrapServers="a, b:9096"',
            'deployment.keyStore.url="redis://user@s1,s2:26380/1?sentinel=main"',
            'schemaRegistryUrl="https://registry/apis/ccompat"',
            'settings={"PINTEREST_API_URL": "http://sandbox:8000/v5", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", '
            '"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://m:4319/v1/metrics"}',
        )
        ports = other.one("NetworkPolicy")["spec"]["egress"][1]["ports"]
        assert [one["port"] for one in ports] == [9092, 9096, 8000, 443, 4318, 4319, 26379, 26380, 6379]

    def test_the_way_out_may_be_restricted_to_networks(self) -> None:
        """`networkPolicy.to` is about the ports that the values name; DNS stays open, and so do rules of one's own."""
        block = {"ipBlock": {"cidr": "10.20.0.0/16", "except": ["10.20.3.0/24"]}}
        own = {"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}], "ports": [{"port": 3128}]}
        chart = rendered(
            "deployment",
            f"networkPolicy.to={json.dumps([block])}",
            f"networkPolicy.egress={json.dumps([own])}",
        )
        dns, others, last = chart.one("NetworkPolicy")["spec"]["egress"]
        assert "to" not in dns
        assert others["to"] == [block]
        assert last == own

    @pytest.mark.parametrize(
        ("flavour", "ports"),
        [("Sentinels", [26379, 26380, 6379]), ("a cluster", [7000, 7001, 7002, 6379])],
    )
    def test_a_key_store_of_several_hosts(self, flavour: str, ports: list[int]) -> None:
        """pinstream reads the URL with the certificate's path in it, and the policy opens the port of each host."""
        chart = rendered(*FLAVOURS[flavour])
        address = parse_address(chart.environment()["PINSTREAM_KEY_STORE"])
        assert len(address.hosts) == {"Sentinels": 3, "a cluster": 4}[flavour]
        assert (address.sentinel == "main") != address.cluster
        assert address.ca == "/etc/pinstream/secrets/key-store-ca"
        found = [one["port"] for one in chart.one("NetworkPolicy")["spec"]["egress"][1]["ports"]]
        assert found[-len(ports) :] == ports


def selectors(chart: Rendered) -> list[tuple[str, dict[str, str]]]:
    """Every selector of the members, with its place."""
    found: list[tuple[str, dict[str, str]]] = []
    for one in chart.manifests:
        spec = one.get("spec", {})
        if one["kind"] == "Service":
            found.append(("Service", spec["selector"]))
        elif one["kind"] == "NetworkPolicy":
            [name] = spec["podSelector"]["matchExpressions"]
            assert (name["key"], "pinstream" in name["values"]) == ("app.kubernetes.io/name", True)
            found.append(("NetworkPolicy", spec["podSelector"]["matchLabels"]))
        elif "selector" in spec:
            found.append((one["kind"], spec["selector"]["matchLabels"]))
    spread = chart.pod()["topologySpreadConstraints"]
    return found + [(one["topologyKey"], one["labelSelector"]["matchLabels"]) for one in spread]


class TestPod:
    """A member runs without privileges, ends by itself, and reports its health."""

    def test_a_member(self, chart: Rendered) -> None:
        """The restricted Pod Security Standard, a read-only root, and no Kubernetes token. A restart only where it
        helps, traffic and rollouts by readiness, time for imports on a slow machine. Nodes can be drained, also while
        no member is ready; members are spread over zones and nodes."""
        pod, container = chart.pod(), chart.container()
        assert pod["automountServiceAccountToken"] is False
        assert chart.one("ServiceAccount")["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        user = re.search(r"^USER (\d+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
        assert user is not None
        security = pod["securityContext"]
        assert security["runAsUser"] == security["fsGroup"] == int(user[1])
        assert security["runAsNonRoot"] is True
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        container = chart.container()
        paths = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
        assert paths == {
            "startup": {"path": "/healthz", "port": "http"},
            "liveness": {"path": "/healthz", "port": "http"},
            "readiness": {"path": "/readyz", "port": "http"},
        }
        start = container["startupProbe"]
        assert start["periodSeconds"] * start["failureThreshold"] >= 120
        budget = chart.one("PodDisruptionBudget")["spec"]
        assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
        assert [one["topologyKey"] for one in chart.pod()["topologySpreadConstraints"]] == [
            "topology.kubernetes.io/zone",
            "kubernetes.io/hostname",
        ]

    @pytest.mark.parametrize("seconds", [25, 120])
    def test_it_ends_by_itself(self, example: str, seconds: int) -> None:
        """Kubernetes kills it only after PINSTREAM_SHUTDOWN_GRACE."""
        chart = rendered(example, f"shutdownGraceSeconds={seconds}")
        grace = parse_duration(chart.environment()["PINSTREAM_SHUTDOWN_GRACE"])
        # It is gone two seconds after its grace, whatever hangs.
        assert grace == seconds < chart.pod()["terminationGracePeriodSeconds"] - 2

    def test_resources_are_those_of_the_tables(self) -> None:
        """CPU for 7,000 events a second by the capacity table; a memory limit above the formula's sum."""
        resources = rendered("statefulset").container()["resources"]
        page = (ROOT / "docs" / "performance.md").read_text("utf-8")
        table = dict(
            re.findall(r"^\| ([\d,]+) \| (\d+\.\d+) \|", page.partition("bench:capacity")[2], re.MULTILINE)
        )
        assert int(resources["requests"]["cpu"].removesuffix("m")) >= 1000 * float(table["7,000"])
        formula = (ROOT / "docs" / "guarantees.md").read_text("utf-8").partition("\n## Memory\n")[2]
        parts = re.findall(r"^\|[^|]+\|[^|]+\| ([\d.]+) MiB \|", formula.partition("\n- ")[0], re.MULTILINE)
        assert len(parts) == 6
        gzip = re.search(r"([\d.]+) MiB \(gzip\)", formula)
        assert gzip is not None
        assert resources["limits"] == {"memory": "1Gi"}
        assert sum(map(float, parts)) + 3 * float(gzip[1]) <= 1024


class TestSettings:
    """pinstream reads the settings in the pod's environment."""

    def test_every_variable_is_a_setting_and_all_together_are_valid(
        self, chart: Rendered, tmp_path: Path
    ) -> None:
        """They are loaded as `pinstream run` does, with the mounted files in place."""
        environment = self.on_this_machine(chart, tmp_path)
        assert load(environment).kafka.group_id == "pinstream"
        known = {one.name for one in all_settings()} | {
            f"{one.name}_FILE" for one in all_settings() if one.secret
        }
        for name in environment:
            if name.startswith(("PINSTREAM_", "PINTEREST_")):
                assert name in known

    def on_this_machine(self, chart: Rendered, folder: Path) -> dict[str, str]:
        """The environment, with all mounted paths moved below `folder`."""
        files = {f"/etc/pinstream/secrets/{file}": "secret" for _, _, file in mounted(chart)}
        for volume in chart.pod()["volumes"]:
            if volume["name"] == "tokens":
                sources = volume["projected"]["sources"]
                paths = [source["secret"]["items"][0]["path"] for source in sources]
                files |= {f"/etc/pinstream/tokens/{path}": "secret" for path in paths}
            if "configMap" in volume:
                data = chart.one("ConfigMap", volume["configMap"]["name"])["data"]
                files |= {f"/etc/pinstream/{volume['name']}/{name}": text for name, text in data.items()}
        for name, text in files.items():
            path = folder / name.removeprefix("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        environment: dict[str, Any] = {}
        for one in chart.container()["env"]:
            value = one.get("value", "pinstream-0")
            if value.startswith("/etc/pinstream/") and not (folder / value.removeprefix("/")).is_dir():
                assert value in files, f"{one['name']}: {value} is not mounted"
            environment[one["name"]] = value.replace("/etc/pinstream", f"{folder}/etc/pinstream")
        return environment

    def test_no_secret_in_plain_text(self, chart: Rendered) -> None:
        """No variable holds a secret as text; references name a Secret and a key. They are mounted as a whole folder: a
        file that is mounted alone (subPath) would not change."""
        secret = {one.name for one in all_settings() if one.secret} - {"PINSTREAM_KEY_STORE"}
        for name, value in chart.environment().items():
            assert name not in secret
            assert not is_secret(name)
            if name.endswith("_FILE") and name != "PINSTREAM_MAPPING_FILE":
                assert value.startswith(("/etc/pinstream/secrets/", "/etc/pinstream/tokens"))
        assert "Secret" not in chart.kinds()
        by_account = chart.environment()["PINTEREST_ACCESS_TOKEN_FILE"] == "/etc/pinstream/tokens"
        assert by_account != (("pinterest", "token", "PINTEREST_ACCESS_TOKEN") in mounted(chart))
        [mount] = [one for one in chart.container()["volumeMounts"] if one["name"] == "secrets"]
        assert mount == {"name": "secrets", "mountPath": "/etc/pinstream/secrets", "readOnly": True}

    def test_every_secret_may_be_one(self) -> None:
        """Every setting that pinstream can read from a file may be a secret: its own, and those of Kafka's client."""
        names = {one.name for one in all_settings() if one.secret} - {"PINSTREAM_KEY_STORE"}
        names |= {"KAFKA_SASL_PASSWORD", "KAFKA_SSL_KEY_PEM", "KAFKA_SSL_KEY_PASSWORD"}
        chart = rendered("statefulset", *(f"secrets.{name}={json.dumps(SECRET)}" for name in sorted(names)))
        assert names <= {file for _, _, file in mounted(chart)}
        assert {f"{name}_FILE" for name in names} <= chart.environment().keys()
