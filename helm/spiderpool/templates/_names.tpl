{{/* The part of every object that says whose it is. Arguments: root context. */}}
{{- define "spiderpool.name" -}}
{{- .Values.global.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels by which Services and workloads find pods; never changed by an upgrade. Arguments: list of root, component. */}}
{{- define "spiderpool.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "spiderpool.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of an object. Arguments: list of root, component. */}}
{{- define "spiderpool.labels" -}}
{{- $root := index . 0 -}}
{{ include "spiderpool.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with $root.Values.global.commonLabels }}
{{ tpl (toYaml .) $root }}
{{- end }}
{{- end -}}

{{/* Annotations of an object with the word before them, or nothing. Arguments: list of root, annotations, indentation. */}}
{{- define "spiderpool.annotations" -}}
{{- $root := index . 0 -}}
{{- $all := merge (deepCopy (index . 1 | default dict)) ($root.Values.global.commonAnnotations | default dict) -}}
{{- if $all -}}
{{- tpl (toYaml (dict "annotations" $all)) $root | nindent (index . 2) -}}
{{- end -}}
{{- end -}}

{{/* Everything that the controller's certificate is made from: when it changes, so does the certificate. Arguments: root. */}}
{{- define "spiderpool.certificate" -}}
{{- $tls := .Values.spiderpoolController.tls -}}
{{- if eq $tls.method "auto" -}}
{{- toJson (list (include "spiderpool.hosts" .) $tls.auto) | sha256sum -}}
{{- else if eq $tls.method "controller" -}}
controller
{{- else -}}
{{- toJson (list $tls.provided $tls.certmanager) | sha256sum -}}
{{- end -}}
{{- end -}}

{{/* Names by which the controller is called, as a JSON list; agents use the first. Arguments: root. */}}
{{- define "spiderpool.hosts" -}}
{{- $service := printf "%s.%s" .Values.spiderpoolController.name .Release.Namespace -}}
{{- $hosts := list (printf "%s.svc" $service) (printf "%s.svc.%s" $service .Values.global.clusterDnsDomain) $service -}}
{{- concat $hosts .Values.spiderpoolController.tls.auto.extraDnsNames | toJson -}}
{{- end -}}

{{/* Where a controller that makes its certificate itself keeps its own copies, in memory. */}}
{{- define "spiderpool.ownCertificate" -}}
/var/run/spiderpool-tls
{{- end -}}

{{/* How it is to be. Arguments: root. */}}
{{- define "spiderpool.certificateEnvironment" -}}
{{- $tls := .Values.spiderpoolController.tls -}}
{{- $own := $tls.controller -}}
{{- $key := "spiderpoolController.tls.controller" -}}
{{- /* The program refuses these as well, but only when it starts. */ -}}
{{- $left := divf (subf 100 $own.renewAfterPercent) 100 -}}
{{- if gt (float64 $own.certValidityDuration) (mulf $own.caValidityDuration $left) -}}
{{- fail (printf "%s.certValidityDuration=%v: more days than are left of an authority when it is replaced: %v of caValidityDuration=%v" $key $own.certValidityDuration (mulf $own.caValidityDuration $left) $own.caValidityDuration) -}}
{{- end -}}
{{- if gt (float64 $own.overlapSeconds) (divf (mulf 86400 $own.certValidityDuration $left) 2) -}}
{{- fail (printf "%s.overlapSeconds=%v: more than half of the seconds that are left of a certificate when it is replaced: certValidityDuration=%v" $key $own.overlapSeconds $own.certValidityDuration) -}}
{{- end -}}
- name: SPIDERPOOL_CERTIFICATE_SECRET
  value: {{ $tls.secretName | quote }}
- name: SPIDERPOOL_CERTIFICATE_HOSTS
  value: {{ concat (include "spiderpool.hosts" . | fromJsonArray) $own.extraDnsNames $own.extraIpAddresses | uniq | join "," | quote }}
- name: SPIDERPOOL_CERTIFICATE_AUTHORITY_LIFETIME
  value: {{ printf "%.0f" (mulf 86400 $own.caValidityDuration) | quote }}
- name: SPIDERPOOL_CERTIFICATE_LIFETIME
  value: {{ printf "%.0f" (mulf 86400 $own.certValidityDuration) | quote }}
- name: SPIDERPOOL_CERTIFICATE_RENEWAL_PERCENT
  value: {{ $own.renewAfterPercent | quote }}
- name: SPIDERPOOL_CERTIFICATE_OVERLAP
  value: {{ $own.overlapSeconds | int64 | quote }}
{{- end -}}

{{/* Reference of an image. Arguments: list of root, image values. */}}
{{- define "spiderpool.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $registry := $root.Values.global.imageRegistryOverride | default $image.registry -}}
{{- with $registry }}{{ . }}/{{ end }}{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default (printf "v%s" $root.Chart.AppVersion) }}{{ end }}
{{- end -}}

{{/* The image of a part that takes the controller's where its own has no repository. Arguments: list of root, image values. */}}
{{- define "spiderpool.imageOrController" -}}
{{- $root := index . 0 -}}
{{- include "spiderpool.image" (list $root (ternary (index . 1) $root.Values.spiderpoolController.image (ne (index . 1).repository ""))) -}}
{{- end -}}

{{/* The probes of a container. Arguments: list of values of the program, root, how to ask as a template's name. */}}
{{- define "spiderpool.probes" -}}
{{- $program := index . 0 -}}
{{- $root := index . 1 -}}
{{- $ask := index . 2 -}}
{{- range $name, $path := dict "startupProbe" "startup" "livenessProbe" "liveness" "readinessProbe" "readiness" }}
{{- if or (ne $name "startupProbe") (semverCompare ">=1.20.0-0" $root.Capabilities.KubeVersion.Version) }}
{{ $name }}:
  {{- include $ask (list $root (printf "/v1/runtime/%s" $path)) | nindent 2 }}
  {{- toYaml (get $program.healthChecking $name) | nindent 2 }}
  successThreshold: 1
  timeoutSeconds: 5
{{- end }}
{{- end }}
{{- end -}}

{{/* Over HTTP, on the node's own address where the pod is on its network. Arguments: list of root, path. */}}
{{- define "spiderpool.askController" -}}
{{- $root := index . 0 -}}
httpGet:
  {{- if $root.Values.spiderpoolController.hostnetwork }}
  host: {{ ternary "127.0.0.1" "::1" $root.Values.ipam.enableIPv4 | quote }}
  {{- end }}
  path: {{ index . 1 }}
  port: {{ $root.Values.spiderpoolController.httpPort }}
  scheme: HTTP
{{- end -}}

{{/*
On the pod's own socket: during a roll-out two agents share the node's ports, and either could answer there. The program
that asks is the plugin, which starts in a millisecond. Arguments: list of root, path.
*/}}
{{- define "spiderpool.askAgent" -}}
{{- $root := index . 0 -}}
exec:
  command: [{{ $root.Values.spiderpoolAgent.shimName | quote }}, probe, /run/spiderpool/probe.sock, {{ index . 1 }}]
{{- end -}}

{{/* A container that may do nothing to the node: of the controller and of the hooks. Arguments: the value that overrides. */}}
{{- define "spiderpool.confined" -}}
{{- if . -}}
{{- toYaml . -}}
{{- else -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
{{- end -}}
{{- end -}}

{{/* The pod of the same. Its group is set so that the user, who is not root, reads what kubelet mounts. */}}
{{- define "spiderpool.confinedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Environment that both programs have. Arguments: list of values of the program, root. */}}
{{- define "spiderpool.environment" -}}
{{- $program := index . 0 -}}
{{- $root := index . 1 -}}
- name: SPIDERPOOL_POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: SPIDERPOOL_POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: SPIDERPOOL_LOG_LEVEL
  value: {{ $program.debug.logLevel | quote }}
- name: SPIDERPOOL_HEALTH_PORT
  value: {{ $program.httpPort | quote }}
- name: SPIDERPOOL_ENABLED_METRIC
  value: {{ $program.prometheus.enabled | quote }}
- name: SPIDERPOOL_ENABLED_DEBUG_METRIC
  value: {{ $program.prometheus.enabledDebugMetric | quote }}
- name: SPIDERPOOL_METRIC_HTTP_PORT
  value: {{ $program.prometheus.port | quote }}
{{- with $root.Values.otlpEndpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- end -}}

{{/*
What the chart's hooks have in common. They are pods, not jobs: a job is only called complete one to two seconds after
its pod, and helm waits for each. One try: the programs try again by themselves what a second try could mend, and what
is wrong is then said at once. They run before there is a pod network, and on nodes that are not ready for want of one.
Arguments: list of root, image values.
*/}}
{{- define "spiderpool.hookPodSpec" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $controller := $root.Values.spiderpoolController -}}
restartPolicy: Never
hostNetwork: true
dnsPolicy: Default
{{- with (ternary $image $controller.image (ne $image.repository "")).imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $controller.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with $controller.nodeSelector }}
nodeSelector:
  {{- tpl (toYaml .) $root | nindent 2 }}
{{- end }}
tolerations:
  - operator: Exists
securityContext:
  {{- include "spiderpool.confinedPod" $root | nindent 2 }}
{{- end -}}

{{/*
Annotations of a hook with what only it has. Accounts and roles go when the hook has succeeded, its pod as well: the log
is shown by helm 4. Arguments: list of root, hooks, weight.
*/}}
{{- define "spiderpool.hook" -}}
{{- $hook := dict "helm.sh/hook" (index . 1) "helm.sh/hook-weight" (index . 2) "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded" -}}
{{- include "spiderpool.annotations" (list (index . 0) $hook 2) }}
{{- end -}}

{{/* The same of the pod. Arguments: list of root, hooks, weight. */}}
{{- define "spiderpool.hookPod" -}}
{{- $hook := dict "helm.sh/hook" (index . 1) "helm.sh/hook-weight" (index . 2) "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded" "helm.sh/hook-output-log-policy" "hook-succeeded,hook-failed" -}}
{{- include "spiderpool.annotations" (list (index . 0) $hook 2) }}
{{- end -}}

{{/*
The account under which a hook runs, with a ClusterRole of its own and, where rules are given for it, a Role. With `hooks`
they are made for these alone and go behind them; without they are the release's, which a hook can use that runs while
the release is there: helm makes those all at once, but waits for each object of a hook.
Arguments: dict of root, name, rules and namespaceRules as YAML texts; hooks, or annotations of the account.
*/}}
{{- define "spiderpool.hookAccount" -}}
{{- $root := .root }}
{{- $labels := include "spiderpool.labels" (list .root .name) }}
{{- $annotations := "" }}
{{- $ofAccount := "" }}
{{- if .hooks }}
{{- $annotations = include "spiderpool.hook" (list .root .hooks "-10") }}
{{- $ofAccount = $annotations }}
{{- else }}
{{- $annotations = include "spiderpool.annotations" (list .root dict 2) }}
{{- $ofAccount = include "spiderpool.annotations" (list .root .annotations 2) }}
{{- end }}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ .name | quote }}
  namespace: {{ $root.Release.Namespace | quote }}
  labels:
    {{- $labels | nindent 4 }}
  {{- $ofAccount }}
{{- range $kind, $rules := dict "ClusterRole" .rules "Role" (.namespaceRules | default "") }}
{{- if $rules }}
{{- range list $kind (printf "%sBinding" $kind) }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ . }}
metadata:
  name: {{ $.name | quote }}
  {{- if eq $kind "Role" }}
  namespace: {{ $root.Release.Namespace | quote }}
  {{- end }}
  labels:
    {{- $labels | nindent 4 }}
  {{- $annotations }}
{{- if eq . $kind }}
rules:
  {{- $rules | nindent 2 }}
{{- else }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $kind }}
  name: {{ $.name | quote }}
subjects:
  - kind: ServiceAccount
    name: {{ $.name | quote }}
    namespace: {{ $root.Release.Namespace | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Environment of a program that allocates: the controller, and an agent that may do so. Arguments: root. */}}
{{- define "spiderpool.allocation" -}}
- name: SPIDERPOOL_COORDINATOR_ENABLED
  value: {{ .Values.coordinator.enabled | quote }}
- name: SPIDERPOOL_COORDINATOR_DEFAULT_NAME
  value: {{ .Values.coordinator.name | quote }}
{{- with .Values.coordinator.serviceCIDR }}
- name: SPIDERPOOL_SERVICE_CIDR
  value: {{ join "," . | quote }}
{{- end }}
{{- with .Values.multus.multusCNI.defaultCniCRName }}
- name: MULTUS_CLUSTER_NETWORK
  value: {{ printf "%s/%s" $.Release.Namespace . | quote }}
{{- end }}
- name: SPIDERPOOL_IP_COOLDOWN_DURATION
  value: {{ .Values.ipam.cooldownSeconds | quote }}
- name: SPIDERPOOL_IP_QUARANTINE_DURATION
  value: {{ .Values.ipam.quarantineSeconds | quote }}
- name: SPIDERPOOL_POOL_WRITE_BYTES_PER_SECOND
  value: {{ .Values.ipam.poolWriteBytesPerSecond | int64 | quote }}
{{- end -}}
