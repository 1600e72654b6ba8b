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
{{- else -}}
{{- toJson $tls.provided | sha256sum -}}
{{- end -}}
{{- end -}}

{{/* Names by which the controller is called, as a JSON list; agents use the first. Arguments: root. */}}
{{- define "spiderpool.hosts" -}}
{{- $service := printf "%s.%s" .Values.spiderpoolController.name .Release.Namespace -}}
{{- $hosts := list (printf "%s.svc" $service) (printf "%s.svc.%s" $service .Values.global.clusterDnsDomain) $service -}}
{{- concat $hosts .Values.spiderpoolController.tls.auto.extraDnsNames | toJson -}}
{{- end -}}

{{/* Reference of an image. Arguments: list of root, image values. */}}
{{- define "spiderpool.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $registry := $root.Values.global.imageRegistryOverride | default $image.registry -}}
{{- with $registry }}{{ . }}/{{ end }}{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default (printf "v%s" $root.Chart.AppVersion) }}{{ end }}
{{- end -}}

{{/* The three probes of a container. Arguments: list of values of the program, whether it is on the node's network, root. */}}
{{- define "spiderpool.probes" -}}
{{- $program := index . 0 -}}
{{- $root := index . 2 -}}
{{- $host := "" -}}
{{- if index . 1 }}{{ $host = ternary "127.0.0.1" "::1" $root.Values.ipam.enableIPv4 }}{{ end -}}
{{- range $name, $path := dict "startupProbe" "startup" "livenessProbe" "liveness" "readinessProbe" "readiness" }}
{{- if or (ne $name "startupProbe") (semverCompare ">=1.20.0-0" $root.Capabilities.KubeVersion.Version) }}
{{- $probe := get $program.healthChecking $name }}
{{ $name }}:
  httpGet:
    {{- with $host }}
    host: {{ . | quote }}
    {{- end }}
    path: /v1/runtime/{{ $path }}
    port: {{ $program.httpPort }}
    scheme: HTTP
  {{- toYaml $probe | nindent 2 }}
  successThreshold: 1
  timeoutSeconds: 5
{{- end }}
{{- end }}
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
