"""Sets of values that the tests beside this file render: for both kinds of workload, and for one of them."""

from __future__ import annotations

import json

KINDS = {"statefulset": "StatefulSet", "deployment": "Deployment"}
SECRET = {"name": "theirs", "key": "in-it"}

MATRIX: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "without anything optional": (
        *("monitoring.enabled=false", "dashboard.enabled=false", "networkPolicy.enabled=false"),
        *('schemas={"event.avsc": null}', 'mapping=""', 'schemaRegistryUrl=""'),
    ),
    "everything": (
        'monitoring={"enabled": true, "runbookUrl": "https://git.example.com/pinstream/"}',
        *(
            "dashboard.enabled=true",
            'schemas={"event.avsc": null, "a.avsc": "{}", "a.17.avsc": "{}"}',
            'python={"events.py": "clean = dict.copy"}',
            'mapping="# none\\n"',
        ),
        *('podLabels={"team": "ads"}', 'podAnnotations={"a": "b"}', 'nodeSelector={"disk": "ssd"}'),
        *('tolerations=[{"operator": "Exists"}]', 'priorityClassName="high"', 'image.tag="next"'),
        *('image.pullSecrets=[{"name": "registry"}]', f"secrets.PINSTREAM_HTTP_TOKEN={json.dumps(SECRET)}"),
        'networkPolicy.egress=[{"ports": [{"port": 9094}]}]',
    ),
    "a client certificate": (
        *('settings.KAFKA_SECURITY_PROTOCOL="SSL"', "settings.KAFKA_SASL_MECHANISM=null"),
        "settings.KAFKA_SASL_USERNAME=null",
        f"secrets.KAFKA_SSL_CERTIFICATE_LOCATION={json.dumps(SECRET)}",
        *(f"secrets.KAFKA_SSL_KEY_LOCATION={json.dumps(SECRET)}", "secrets.KAFKA_SASL_PASSWORD=null"),
    ),
    "neither TLS nor a user": (
        *("settings.KAFKA_SECURITY_PROTOCOL=null", "settings.KAFKA_SASL_MECHANISM=null"),
        *("settings.KAFKA_SASL_USERNAME=null", "secrets.KAFKA_SASL_PASSWORD=null"),
        "secrets.KAFKA_SSL_CA_LOCATION=null",
    ),
    "a token for each account": (
        *("secrets.PINTEREST_ACCESS_TOKEN=null", 'settings.PINTEREST_EXTRA_AD_ACCOUNT_IDS="549755885176"'),
        f'accessTokens={{"549755885175": {json.dumps(SECRET)}, "549755885176": {json.dumps(SECRET)}}}',
    ),
    "several topics, one a pattern": ('kafka.topics=["orders", "^shop[.].*$"]',),
}

EXTRA = (
    'extraArgs=["--workers", "2"]',
    'extraEnv=[{"name": "TZ", "value": "UTC"}, {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": '
    '"status.podIP"}}}]',
    'extraEnvFrom=[{"secretRef": {"name": "more"}}]',
    'extraVolumes=[{"name": "own", "csi": {"driver": "secrets-store.csi.k8s.io", "readOnly": true}}]',
    'extraVolumeMounts=[{"name": "own", "mountPath": "/mnt/own", "readOnly": true}]',
    'extraInitContainers=[{"name": "first", "image": "first:1"}]',
    'extraContainers=[{"name": "beside", "image": "beside:1"}]',
    'affinity={"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": '
    '[{"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]}}}',
    'topologySpreadConstraints=[{"topologyKey": "rack", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}]',
    'commonLabels={"team": "ads"}',
    'commonAnnotations={"reloader.stakater.com/auto": "true"}',
    *('podLabels={"own": "yes"}', 'podAnnotations={"vault.hashicorp.com/agent-inject": "true"}'),
    'serviceAccountAnnotations={"role": "shop"}',
    f'image.digest="sha256:{"0a" * 32}"',
    'podSecurityContext={"runAsUser": null, "runAsGroup": null, "fsGroup": null}',
    *("monitoring.enabled=true", "dashboard.enabled=true", 'mapping="# none\\n"'),
)
"""All that the chart passes on as it is, and what OpenShift wants."""

FLAVOURS: dict[str, tuple[str, ...]] = {
    "a canary": ("statefulset", "statefulSet.partition=2"),
    "nothing in a Secret": (
        "statefulset",
        *(
            f"secrets.{name}=null"
            for name in ("KAFKA_SASL_PASSWORD", "KAFKA_SSL_CA_LOCATION", "PINTEREST_ACCESS_TOKEN")
        ),
        'settings={"KAFKA_SASL_MECHANISM": null, "PINTEREST_ACCESS_TOKEN_FILE": "/vault/secrets/token"}',
    ),
    "a fixed number": ("deployment", "deployment.replicas=3", "deployment.maxReplicas=null"),
    "Sentinels": (
        "deployment",
        'deployment.keyStore.url="rediss://pinstream@s-0:26379,s-1,s-2:26380/1?sentinel=main&prefix=shop"',
    ),
    "a cluster": (
        "deployment",
        'deployment.keyStore.url="rediss://a:7000,b:7001,[fd00::1]:7002,c?cluster=true"',
    ),
}
"""What one kind of workload has alone: its example, and assignments."""
SETS = [(example, assignments) for example in KINDS for assignments in MATRIX.values()]
SETS += [(example, tuple(assignments)) for example, *assignments in FLAVOURS.values()]
SETS += [(example, EXTRA) for example in KINDS]
"""An example and its assignments, for everything that is held against schemas."""
