{{- /* Names are fixed: programs and webhook know them, and a cluster has one control plane. */ -}}

{{- /* Labels of an object of a component: (dict "root" $ "component" "operator"). */ -}}
{{- define "weft.labels" -}}
app.kubernetes.io/name: weft-{{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/part-of: weft
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Labels by which a component's pods are selected; these never change. */ -}}
{{- define "weft.selector" -}}
app.kubernetes.io/name: weft-{{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{- /* Tag of all images, and version of the proxies. */ -}}
{{- define "weft.tag" -}}
{{- .Values.image.tag | default .Chart.AppVersion -}}
{{- end -}}

{{- /* Namespaces that are never injected, as JSON. */ -}}
{{- define "weft.excludedNamespaces" -}}
{{- append .Values.webhook.excludedNamespaces .Release.Namespace | uniq | sortAlpha | toJson -}}
{{- end -}}

{{- /* Image of a component: (dict "root" $ "component" "operator"). */ -}}
{{- define "weft.image" -}}
{{- with .root.Values.image -}}
{{ .registry }}/{{ .prefix }}{{ $.component }}
{{- with index .digest $.component }}@{{ . }}{{ else }}:{{ include "weft.tag" $.root }}{{ end }}
{{- end -}}
{{- end -}}

{{- /* Metadata of a component's pods. */ -}}
{{- define "weft.podMetadata" -}}
labels:
  {{- include "weft.labels" . | nindent 2 }}
  {{- with .root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  # Neither is ever part of the mesh that it makes.
  weft.dev/inject: "false"
annotations:
  kubectl.kubernetes.io/default-container: {{ .component }}
  {{- with .root.Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- /* What the pods of all components have in common. */ -}}
{{- define "weft.podSpec" -}}
serviceAccountName: weft-{{ .component }}
automountServiceAccountToken: true
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
topologySpreadConstraints:
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- topologyKey: {{ . }}
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "weft.selector" $ | nindent 6 }}
{{- end }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
{{- toYaml . | nindent 0 }}
{{- end }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations:
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end -}}

{{- /* What the containers of all components have in common, apart from their environment and ports. */ -}}
{{- define "weft.container" -}}
name: {{ .component }}
image: {{ include "weft.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
{{- with index .root.Values .component "resources" }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
livenessProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 10
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 2
  failureThreshold: 3
securityContext:
  runAsNonRoot: true
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{- /* A budget for evictions; with one replica it would only block the draining of nodes. */ -}}
{{- define "weft.disruptionBudget" -}}
{{- if gt (int (index .root.Values .component "replicas")) 1 }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: weft-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "weft.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "weft.selector" . | nindent 6 }}
{{- end }}
{{- end -}}
