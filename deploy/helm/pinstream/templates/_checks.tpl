{{/* Values that contradict each other, or lack something: one sentence that says what to change. */}}
{{- define "pinstream.check" -}}
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
{{- if not (or .Values.secrets.PINTEREST_ACCESS_TOKEN .Values.accessTokens) }}
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
{{- range $name, $value := .Values.settings }}
  {{- if has $name (list "KAFKA_BOOTSTRAP_SERVERS" "KAFKA_TOPICS" "KAFKA_GROUP_ID" "KAFKA_GROUP_INSTANCE_ID" "PINTEREST_AD_ACCOUNT_ID" "SCHEMA_REGISTRY_URL" "PINSTREAM_HTTP_ADDRESS" "PINSTREAM_KEY_STORE" "PINSTREAM_MAPPING_FILE" "PINSTREAM_SCHEMAS_DIR" "PINSTREAM_SHUTDOWN_GRACE" "PINSTREAM_STATE_DIR") }}
    {{- fail (printf "settings.%s: the chart sets it, from kind and other values; remove it from settings" $name) }}
  {{- end }}
  {{- if regexMatch "(TOKEN|PASSWORD|SECRET|PASSPHRASE|USER_INFO|KEY_PEM|OAUTHBEARER_CONFIG|JAAS_CONFIG|HEADERS)$" $name }}
    {{- fail (printf "settings.%s is a secret and would stand in plain text: put it into a Secret, and name that in secrets" $name) }}
  {{- end }}
  {{- if and (hasSuffix "_PROXY" $name) (regexMatch "^[^/]*//[^/?]*:[^/?@]*@" $value) }}
    {{- fail (printf "settings.%s has a password in it, which would stand in plain text: put user:password into a Secret, and name that in secrets.PINSTREAM_PROXY_CREDENTIALS" $name) }}
  {{- end }}
  {{- if hasKey $.Values.secrets (trimSuffix "_FILE" $name) }}
    {{- fail (printf "settings.%s and secrets.%s are both set; keep one of them" $name (trimSuffix "_FILE" $name)) }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "pinstream.checkDeployment" -}}
{{- if .Values.statefulSet }}
  {{- fail "kind=Deployment and statefulSet contradict each other: the members of a Deployment have no volume, and KEDA decides how many there are; empty statefulSet, or set kind=StatefulSet" }}
{{- end }}
{{- $url := dig "keyStore" "url" "" .Values.deployment }}
{{- if not (regexMatch "^rediss?://" $url) }}
  {{- fail "kind=Deployment needs deployment.keyStore.url=redis://… or rediss://…: its members come and go, so they have to share the keys of delivered events; without Redis or Valkey, set kind=StatefulSet" }}
{{- end }}
{{- if regexMatch "^rediss?://[^/?]*:[^/?@]*@" $url }}
  {{- fail "deployment.keyStore.url has a password in it, which would stand in plain text: put it into a Secret, and name that in secrets.PINSTREAM_KEY_STORE_PASSWORD" }}
{{- end }}
{{- if not .Values.deployment.maxReplicas }}
  {{- fail "deployment.maxReplicas is not set: give the number of partitions, since more members would have nothing to do" }}
{{- end }}
{{- if gt (dig "minReplicas" 2 .Values.deployment | int) (int .Values.deployment.maxReplicas) }}
  {{- fail "deployment.minReplicas is above deployment.maxReplicas: lower the first or raise the second" }}
{{- end }}
{{- end }}
