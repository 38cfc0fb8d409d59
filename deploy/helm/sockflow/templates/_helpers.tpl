{{- define "sockflow.name" -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- define "sockflow.labels" -}}
app.kubernetes.io/name: sockflow
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}
{{- define "sockflow.selector" -}}
app.kubernetes.io/name: sockflow
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
