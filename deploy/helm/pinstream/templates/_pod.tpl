{{- define "pinstream.secretsDir" -}}/etc/pinstream/secrets{{- end }}

{{- define "pinstream.tokensDir" -}}/etc/pinstream/tokens{{- end }}

{{/* Every secret that is mounted: name of the file -> Secret and key. */}}
{{- define "pinstream.secretFiles" -}}
{{- $files := deepCopy .Values.secrets }}
{{- range $part := list "ca" "cert" "key" }}
  {{- with dig "keyStore" $part nil $.Values.deployment }}
    {{- $_ := set $files (printf "key-store-%s" $part) . }}
  {{- end }}
{{- end }}
{{- toYaml $files }}
{{- end }}

{{/* The shared key store's URL, with the paths of its certificates as options. */}}
{{- define "pinstream.keyStoreUrl" -}}
{{- $url := .Values.deployment.keyStore.url }}
{{- range $part := list "ca" "cert" "key" }}
  {{- if hasKey $.Values.deployment.keyStore $part }}
    {{- $url = printf "%s%s%s=%s/key-store-%s" $url (contains "?" $url | ternary "&" "?") $part (include "pinstream.secretsDir" $) $part }}
  {{- end }}
{{- end }}
{{- $url }}
{{- end }}

{{- define "pinstream.environment" -}}
- {name: KAFKA_BOOTSTRAP_SERVERS, value: {{ .Values.kafka.bootstrapServers | quote }}}
- {name: KAFKA_TOPICS, value: {{ .Values.kafka.topics | join "," | quote }}}
- {name: KAFKA_GROUP_ID, value: {{ .Values.kafka.groupId | quote }}}
{{- if eq .Values.kind "StatefulSet" }}
# Static membership: a member that comes back within KAFKA_SESSION_TIMEOUT_MS has its partitions again, without a rebalance.
- name: KAFKA_GROUP_INSTANCE_ID
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{- end }}
{{- with .Values.schemaRegistryUrl }}
- {name: SCHEMA_REGISTRY_URL, value: {{ . | quote }}}
{{- end }}
- {name: PINTEREST_AD_ACCOUNT_ID, value: {{ .Values.adAccountId | quote }}}
- {name: PINSTREAM_STATE_DIR, value: /var/lib/pinstream}
{{- if eq .Values.kind "Deployment" }}
- {name: PINSTREAM_KEY_STORE, value: {{ include "pinstream.keyStoreUrl" . | quote }}}
{{- end }}
{{- if .Values.schemas }}
- {name: PINSTREAM_SCHEMAS_DIR, value: /etc/pinstream/schemas}
{{- end }}
{{- if .Values.python }}
- {name: PYTHONPATH, value: /etc/pinstream/python}
{{- end }}
{{- if .Values.mapping }}
- {name: PINSTREAM_MAPPING_FILE, value: /etc/pinstream/mapping/mapping.toml}
{{- end }}
- {name: PINSTREAM_SHUTDOWN_GRACE, value: {{ printf "%ds" (int .Values.shutdownGraceSeconds) }}}
- {name: PINSTREAM_HTTP_ADDRESS, value: "0.0.0.0:8080"}
{{- range $name, $value := .Values.settings }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- if .Values.accessTokens }}
- {name: PINTEREST_ACCESS_TOKEN_FILE, value: {{ include "pinstream.tokensDir" . }}}
{{- end }}
{{- range $name, $_ := .Values.secrets }}
- {name: {{ $name }}{{ if not (hasSuffix "_LOCATION" $name) }}_FILE{{ end }}, value: {{ include "pinstream.secretsDir" $ }}/{{ $name }}}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The pod of both kinds; they differ in what `state` is. */}}
{{- define "pinstream.pod" -}}
metadata:
  labels:
    {{- include "pinstream.selectorLabels" . | nindent 4 }}
    {{- with merge (deepCopy .Values.podLabels) .Values.commonLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  annotations:
    # Schemas, mapping and modules are read at the start only, so a change has to restart the members.
    checksum/config: {{ toJson (list .Values.schemas .Values.python .Values.mapping) | sha256sum }}
    {{- with merge (deepCopy .Values.podAnnotations) .Values.commonAnnotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  {{- include "pinstream.placement" . | nindent 2 }}
  topologySpreadConstraints:
    {{- with .Values.topologySpreadConstraints }}
    {{- toYaml . | nindent 4 }}
    {{- else }}
    {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - topologyKey: {{ . }}
      maxSkew: 1
      whenUnsatisfiable: ScheduleAnyway # a member that waits for a place helps less than one in the wrong place
      labelSelector:
        matchLabels:
          {{- include "pinstream.selectorLabels" $ | nindent 10 }}
    {{- end }}
    {{- end }}
  containers:
    - args:
        - run
        {{- with .Values.extraArgs }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- include "pinstream.container" . | nindent 6 }}
      ports:
        - {name: http, containerPort: 8080}
      # For Python's imports on a small share of a CPU. The key store is opened, and the brokers are found, behind it.
      startupProbe:
        httpGet: {path: /healthz, port: http}
        periodSeconds: 2
        timeoutSeconds: 5
        failureThreshold: 60
      livenessProbe:
        httpGet: {path: /healthz, port: http}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      readinessProbe:
        httpGet: {path: /readyz, port: http}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 2
    {{- with .Values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "pinstream.volumes" . | nindent 4 }}
    {{- if eq .Values.kind "Deployment" }}
    - name: state # what is in it matters to this one process only: the keys are in the shared store
      emptyDir: {}
    {{- end }}
{{- end }}

{{/* Where and as whom a pod runs: a member, and that of `helm test`. */}}
{{- define "pinstream.placement" -}}
serviceAccountName: {{ include "pinstream.fullname" . }}
automountServiceAccountToken: false
# Variables such as KAFKA_PORT, which Kubernetes makes for services, are not ours.
enableServiceLinks: false
# Two seconds after its grace a member is gone, whatever hangs.
terminationGracePeriodSeconds: {{ add (int .Values.shutdownGraceSeconds) 10 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.extraInitContainers }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* pinstream's container, without what it runs. */}}
{{- define "pinstream.container" -}}
name: pinstream
image: {{ include "pinstream.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
env:
  {{- include "pinstream.environment" . | nindent 2 }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
volumeMounts:
  - {name: state, mountPath: /var/lib/pinstream}
  - {name: secrets, mountPath: {{ include "pinstream.secretsDir" . }}, readOnly: true}
  {{- if .Values.accessTokens }}
  - {name: tokens, mountPath: {{ include "pinstream.tokensDir" . }}, readOnly: true}
  {{- end }}
  {{- range $what := list "schemas" "python" "mapping" }}
  {{- if get $.Values $what }}
  - {name: {{ $what }}, mountPath: /etc/pinstream/{{ $what }}, readOnly: true}
  {{- end }}
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "pinstream.image" -}}
{{- with .Values.image }}
{{- .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* Every volume but `state`. */}}
{{- define "pinstream.volumes" -}}
# Mounted as a whole: files that are mounted one by one (subPath) are not changed when their Secret is.
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      {{- range $file, $from := include "pinstream.secretFiles" . | fromYaml }}
      - {{ hasKey $from "configMap" | ternary "configMap" "secret" }}:
          name: {{ $from.configMap | default $from.name }}
          items: [{key: {{ $from.key | quote }}, path: {{ $file }}}]
      {{- end }}
{{- if .Values.accessTokens }}
- name: tokens
  projected:
    defaultMode: 0440
    sources:
      {{- range $account, $from := .Values.accessTokens }}
      - secret:
          name: {{ $from.name }}
          items: [{key: {{ $from.key | quote }}, path: {{ $account | quote }}}]
      {{- end }}
{{- end }}
{{- range $what := list "schemas" "python" "mapping" }}
{{- if get $.Values $what }}
- name: {{ $what }}
  configMap: {name: {{ include "pinstream.fullname" $ }}-{{ $what }}}
{{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
