"""The chart's monitoring, and the notes that `helm install` prints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.deploy.rendering import CHART, EXAMPLES, ROOT, rendered, run_helm
from tests.deploy.values import KINDS, MATRIX, SECRET


@pytest.fixture(params=KINDS)
def example(request: pytest.FixtureRequest) -> str:
    """One of the examples: there is one for each kind of workload."""
    return str(request.param)


class TestWatching:
    """The operator's objects use the same files as Docker Compose."""

    @pytest.mark.parametrize(
        ("copy", "source"),
        [("alerts.yml", "alerts.yml"), ("dashboard.json", "grafana/dashboards/pinstream.json")],
    )
    def test_one_source(self, copy: str, source: str) -> None:
        """A chart can hold only files of its own folder, so these are copies: copy the file again after a change."""
        assert (CHART / "files" / copy).read_bytes() == (ROOT / "deploy" / source).read_bytes()

    def test_rules_are_those_of_the_file_with_this_release_s_job(self, example: str) -> None:
        """Every alert is unchanged, but for the job's name and the runbook's address."""
        groups = rendered(example, *MATRIX["everything"]).one("PrometheusRule")["spec"]["groups"]
        text = (ROOT / "deploy" / "alerts.yml").read_text("utf-8")
        text = text.replace('job="pinstream"', 'job="shop/pinstream"')
        text = text.replace("runbook_url: docs/", "runbook_url: https://git.example.com/pinstream/docs/")
        assert groups == yaml.safe_load(text)["groups"]

    def test_the_monitor_asks_every_member(self, example: str) -> None:
        """It has the token, where one is set; the operator calls the job by namespace and name, as the rules do."""
        chart = rendered(example, *MATRIX["everything"])
        monitor = chart.one("PodMonitor")
        [endpoint] = monitor["spec"]["podMetricsEndpoints"]
        assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
        assert endpoint["authorization"]["credentials"] == SECRET
        assert endpoint["relabelings"] == [
            {"sourceLabels": ["__meta_kubernetes_pod_name"], "targetLabel": "instance"}
        ]
        assert f'job="shop/{monitor["metadata"]["name"]}"' in str(chart.one("PrometheusRule"))

    def test_the_dashboard_is_grafana_s(self, example: str) -> None:
        """The same document, under the label that Grafana's sidecar looks for."""
        config = rendered(example, *MATRIX["everything"]).one("ConfigMap", "pinstream-dashboard")
        assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
        source = ROOT / "deploy" / "grafana" / "dashboards" / "pinstream.json"
        assert json.loads(config["data"]["pinstream.json"]) == json.loads(source.read_text("utf-8"))


class TestNotes:
    """The notes that `helm install` prints last."""

    def test_the_commands_name_what_is_there(self, example: str, tmp_path: Path) -> None:
        """The rendered commands have the workload's name, and the number that KEDA runs."""
        copy = shutil.copytree(CHART, tmp_path / "pinstream")
        notes_file = copy / "templates" / "NOTES.txt"
        text = notes_file.read_text("utf-8")
        notes_file.unlink()
        # As an object, since helm renders notes themselves only with a cluster.
        (copy / "templates" / "notes.yaml").write_text(
            f'{{{{ define "notes" }}}}{text}{{{{ end }}}}kind: Notes\ntext: {{{{ include "notes" . | quote }}}}\n',
            "utf-8",
        )

        def noted(*assignments: str) -> str:
            values = ["--namespace", "shop", "--values", str(EXAMPLES / f"{example}.yaml")]
            values += [argument for one in assignments for argument in ("--set-json", one)]
            done = run_helm(
                "template", "pinstream", str(copy), "--show-only", "templates/notes.yaml", *values
            )
            assert done.returncode == 0, done.stderr
            return str(yaml.safe_load(done.stdout)["text"])

        notes = noted()
        workload = f"{example}/{rendered(example).workload()['metadata']['name']}"
        assert notes.count(f"kubectl -n shop rollout status {workload}") == 1
        assert f"kubectl -n shop port-forward {workload} 8080" in notes
        assert "helm -n shop test pinstream --logs" in notes
        assert ("KEDA runs 2 to 12 members" in notes) == (example == "deployment")
        if example == "deployment":
            fixed = noted("deployment.maxReplicas=null", "deployment.replicas=3")
            assert "3 members share the keys in Redis" in fixed
            assert "KEDA" not in fixed
        else:
            assert "only the members from number 2 on" in noted("statefulSet.partition=2")
        assert ("monitoring.enabled=true" in notes) == (example == "statefulset")
