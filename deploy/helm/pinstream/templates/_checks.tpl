{{/* Values that contradict each other, lack something or have a wrong name: one sentence that says what to change. */}}
{{- define "pinstream.check" -}}
{{- include "pinstream.checkNames" . }}
{{- if not .Values.image.repository }}
  {{- fail "image.repository is not set: name the image that you built from the Dockerfile" }}
{{- end }}
{{- if not .Values.kafka.bootstrapServers }}
  {{- fail "kafka.bootstrapServers is not set: name the brokers to connect to first, host:port, comma-separated" }}
{{- end }}
{{- if not .Values.kafka.topics }}
  {{- fail "kafka.topics is empty: list the topics to read" }}
{{- end }}
{{- if not .Values.adAccountId }}
  {{- fail "adAccountId is not set: give the digits of the ad account, as text" }}
{{- end }}
{{- if and .Values.secrets.PINTEREST_ACCESS_TOKEN .Values.accessTokens }}
  {{- fail "secrets.PINTEREST_ACCESS_TOKEN and accessTokens are both set: keep the one token, or a token for each ad account" }}
{{- end }}
{{- $extra := dict }}
{{- range .Values.extraEnv }}{{ $_ := set $extra .name (.value | default "") }}{{ end }}
{{- $fromAnotherPlace := or .Values.extraEnvFrom (hasKey $extra "PINTEREST_ACCESS_TOKEN") (hasKey $extra "PINTEREST_ACCESS_TOKEN_FILE") (hasKey .Values.settings "PINTEREST_ACCESS_TOKEN_FILE") }}
{{- if not (or .Values.secrets.PINTEREST_ACCESS_TOKEN .Values.accessTokens $fromAnotherPlace) }}
  {{- fail "secrets.PINTEREST_ACCESS_TOKEN is not set: name the Secret and the key that hold the token" }}
{{- end }}
{{- if .Values.accessTokens }}
  {{- range $account := compact (splitList "," (printf "%s,%s" .Values.adAccountId (dig "PINTEREST_EXTRA_AD_ACCOUNT_IDS" "" .Values.settings))) }}
    {{- if not (hasKey $.Values.accessTokens (trim $account)) }}
      {{- fail (printf "accessTokens has no %q: name the Secret and the key that hold the token of this ad account" (trim $account)) }}
    {{- end }}
  {{- end }}
{{- end }}
{{- if eq .Values.kind "StatefulSet" }}
  {{- if .Values.deployment }}
    {{- fail "kind=StatefulSet and deployment contradict each other: a member of a StatefulSet keeps its keys on its volume and its name in the group, so it shares no store and does not come and go with the lag; empty deployment, or set kind=Deployment" }}
  {{- end }}
{{- else }}
  {{- include "pinstream.checkDeployment" . }}
{{- end }}
{{- range $from, $variables := dict "settings" .Values.settings "extraEnv" $extra }}
{{- range $name, $value := $variables }}
  {{- if has $name (list "KAFKA_BOOTSTRAP_SERVERS" "KAFKA_TOPICS" "KAFKA_GROUP_ID" "KAFKA_GROUP_INSTANCE_ID" "PINTEREST_AD_ACCOUNT_ID" "SCHEMA_REGISTRY_URL" "PINSTREAM_HTTP_ADDRESS" "PINSTREAM_KEY_STORE" "PINSTREAM_SHUTDOWN_GRACE" "PINSTREAM_STATE_DIR") }}
    {{- fail (printf "%s.%s: the chart sets it, from kind and other values; remove it from %s" $from $name $from) }}
  {{- end }}
  {{- if and $value (regexMatch "(TOKEN|PASSWORD|SECRET|PASSPHRASE|USER_INFO|KEY_PEM|OAUTHBEARER_CONFIG|JAAS_CONFIG|HEADERS)$" $name) }}
    {{- fail (printf "%s.%s is a secret and would stand in plain text: put it into a Secret, and name that in secrets" $from $name) }}
  {{- end }}
  {{- if and (hasSuffix "_PROXY" $name) (regexMatch "^[^/]*//[^/?]*:[^/?@]*@" $value) }}
    {{- fail (printf "%s.%s has a password in it, which would stand in plain text: put user:password into a Secret, and name that in secrets.PINSTREAM_PROXY_CREDENTIALS" $from $name) }}
  {{- end }}
{{- end }}
{{- end }}
{{- $seen := dict }}
{{- range include "pinstream.environment" . | fromYamlArray }}
  {{- if hasKey $seen .name }}
    {{- fail (printf "%s is set twice: settings, extraEnv, secrets, accessTokens, schemas, python and mapping each set variables; keep one of the two" .name) }}
  {{- end }}
  {{- $_ := set $seen .name true }}
{{- end }}
{{- end }}

{{/* Not in the schema of values: of a name that does not match, helm says neither where it is nor what would. */}}
{{- define "pinstream.checkNames" -}}
{{- range $label := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "helm.sh/chart" }}
  {{- if or (hasKey $.Values.commonLabels $label) (hasKey $.Values.podLabels $label) }}
    {{- fail (printf "commonLabels and podLabels: %s is set by the chart; remove it" $label) }}
  {{- end }}
{{- end }}
{{- range $name, $_ := .Values.settings }}
  {{- if not (regexMatch "^((KAFKA|SCHEMA_REGISTRY|PINTEREST|PINSTREAM|OTEL|AWS)_[A-Z0-9_]+|HTTPS?_PROXY|NO_PROXY|SSL_CERT_FILE)$" $name) }}
    {{- fail (printf "settings.%s is no setting: they begin with KAFKA_, SCHEMA_REGISTRY_, PINTEREST_, PINSTREAM_, OTEL_ or AWS_; other variables go to extraEnv" $name) }}
  {{- end }}
{{- end }}
{{- range $name, $_ := .Values.secrets }}
  {{- if not (regexMatch "^(PINTEREST_(ACCESS|READ)_TOKEN|PINSTREAM_HTTP_TOKEN|PINSTREAM_KEY_STORE_PASSWORD|PINSTREAM_PROXY_CREDENTIALS|PINSTREAM_CA|HTTPS?_PROXY|OTEL_EXPORTER_OTLP_((METRICS|TRACES)_)?HEADERS|KAFKA_[A-Z_]+_(PASSWORD|SECRET|PASSPHRASE|KEY_PEM|OAUTHBEARER_CONFIG|LOCATION)|SCHEMA_REGISTRY_(BASIC_AUTH_USER_INFO|SSL_KEY_PASSWORD|BEARER_AUTH_TOKEN|BEARER_AUTH_CLIENT_SECRET|SSL_(CA|KEY|CERTIFICATE)_LOCATION))$" $name) }}
    {{- fail (printf "secrets.%s is no setting that is read from a file: if it is not secret, put it into settings" $name) }}
  {{- end }}
{{- end }}
{{- range $name, $_ := .Values.accessTokens }}
  {{- if not (regexMatch "^[0-9]{1,18}$" $name) }}
    {{- fail (printf "accessTokens has %q, which is no ad account: name the token by the account's digits" $name) }}
  {{- end }}
{{- end }}
{{- range $name, $_ := .Values.schemas }}
  {{- if not (regexMatch "^[A-Za-z0-9._-]+[.]avsc$" $name) }}
    {{- fail (printf "schemas has %q: name the file like event.avsc" $name) }}
  {{- end }}
{{- end }}
{{- range $name, $_ := .Values.python }}
  {{- if not (regexMatch "^[A-Za-z_][A-Za-z0-9_]*[.]py$" $name) }}
    {{- fail (printf "python has %q, which cannot be imported: name the module like events.py" $name) }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "pinstream.checkDeployment" -}}
{{- if .Values.statefulSet }}
  {{- fail "kind=Deployment and statefulSet contradict each other: the members of a Deployment have no volume, and deployment says how many there are; empty statefulSet, or set kind=StatefulSet" }}
{{- end }}
{{- $url := dig "keyStore" "url" "" .Values.deployment }}
{{- if not (regexMatch "^rediss?://" $url) }}
  {{- fail "kind=Deployment needs deployment.keyStore.url=redis://… or rediss://…: its members come and go, so they have to share the keys of delivered events; without Redis or Valkey, set kind=StatefulSet" }}
{{- end }}
{{- if regexMatch "^rediss?://[^/?]*:[^/?@]*@" $url }}
  {{- fail "deployment.keyStore.url has a password in it, which would stand in plain text: put it into a Secret, and name that in secrets.PINSTREAM_KEY_STORE_PASSWORD" }}
{{- end }}
{{- if and (contains "," $url) (not (regexMatch "[?&](sentinel=.|cluster=true)" $url)) }}
  {{- fail "deployment.keyStore.url names several hosts: add ?sentinel=NAME if they are Sentinels, or ?cluster=true if they are nodes of a Redis Cluster" }}
{{- end }}
{{- if .Values.deployment.replicas }}
  {{- if or .Values.deployment.minReplicas .Values.deployment.maxReplicas .Values.deployment.lagThreshold }}
    {{- fail "deployment.replicas contradicts minReplicas, maxReplicas and lagThreshold: keep replicas for a fixed number of members, or the others for KEDA, which scales by the lag" }}
  {{- end }}
{{- else if not .Values.deployment.maxReplicas }}
  {{- fail "deployment.maxReplicas is not set: give the number of partitions, since more members would have nothing to do; or set deployment.replicas, for a fixed number of members without KEDA" }}
{{- else if gt (dig "minReplicas" 2 .Values.deployment | int) (int .Values.deployment.maxReplicas) }}
  {{- fail "deployment.minReplicas is above deployment.maxReplicas: lower the first or raise the second" }}
{{- end }}
{{- end }}
