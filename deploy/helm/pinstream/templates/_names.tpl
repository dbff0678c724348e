{{/* The release's name, with the chart's in it. 52 characters: Kubernetes adds a hash to a StatefulSet's name in a label. */}}
{{- define "pinstream.fullname" -}}
{{- $name := .Release.Name -}}
{{- if not (contains .Chart.Name $name) }}{{ $name = printf "%s-%s" $name .Chart.Name }}{{ end -}}
{{- $name | trunc 52 | trimSuffix "-" -}}
{{- end }}

{{- define "pinstream.selectorLabels" -}}
app.kubernetes.io/name: pinstream
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pinstream.labels" -}}
{{ include "pinstream.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "pinstream.metadata" -}}
name: {{ include "pinstream.fullname" . }}
{{ include "pinstream.placed" . }}
{{- end }}

{{/* What the metadata of every object has beside its name. The labels are last: some objects have more of them. */}}
{{- define "pinstream.placed" -}}
namespace: {{ .Release.Namespace }}
{{- with .Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
labels:
  {{- include "pinstream.labels" . | nindent 2 }}
{{- end }}

{{/* What Prometheus calls the job: as the operator does by itself, so that each release has alerts of its own. */}}
{{- define "pinstream.job" -}}
{{ .Release.Namespace }}/{{ include "pinstream.fullname" . }}
{{- end }}
