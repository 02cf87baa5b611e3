{{- define "walhook.name" -}}
{{- printf "%s-walhook" .Release.Name | replace "walhook-walhook" "walhook" | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "walhook.labels" -}}
app.kubernetes.io/name: walhook
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{- define "walhook.selector" -}}
app.kubernetes.io/name: walhook
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .verb }}
{{- end }}

{{- define "walhook.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "walhook.name" .) -}}
{{- end }}

{{- /* Refuses what could not work, with what to set. */ -}}
{{- define "walhook.check" -}}
{{- range $verb := list "setup" "run" "deliver" -}}
{{- $process := index $.Values $verb -}}
{{- if $process.enabled -}}
{{- $url := required (printf "set %s.postgres.url to the database, such as postgres://ROLE@HOST:5432/DATABASE, without the password" $verb) $process.postgres.url -}}
{{- if regexMatch "^[a-z]+://[^/@]*:[^/@]*@" $url -}}
{{- fail (printf "%s.postgres.url has a password in it, which everybody who may read Deployments could read: put it in a Secret and name that in %s.postgres.passwordSecret.name" $verb $verb) -}}
{{- end -}}
{{- $_ := required (printf "set %s.postgres.passwordSecret.name to a Secret with the role's password: kubectl create secret generic NAME --from-file=password=FILE" $verb) $process.postgres.passwordSecret.name -}}
{{- end -}}
{{- end -}}
{{- $_ := required "set http.tokenSecret.name to a Secret with a token of 16 characters or more: kubectl create secret generic NAME --from-literal=token=$(openssl rand -hex 16)" .Values.http.tokenSecret.name -}}
{{- if gt (int .Values.run.replicas) 2 -}}
{{- fail "set run.replicas to 1 or 2: one process reads the slot, one more can wait for it" -}}
{{- end -}}
{{- if regexMatch "(?m)^\\s*(\\[http\\]|shutdown_timeout_ms)" .Values.config -}}
{{- fail "leave [http] and shutdown_timeout_ms out of config: set http.port, http.tokenSecret and shutdownTimeoutMs" -}}
{{- end -}}
{{- if and .Values.postgresCa.configMap .Values.postgresCa.secret -}}
{{- fail "set postgresCa.configMap or postgresCa.secret, not both" -}}
{{- end -}}
{{- end }}

{{- /* A Deployment. In: root, verb, process (its values), args. */ -}}
{{- define "walhook.deployment" -}}
{{- $root := .root -}}
{{- $values := .root.Values -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "walhook.name" $root }}-{{ .verb }}
  labels:
    {{- include "walhook.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .verb }}
spec:
  replicas: {{ .process.replicas }}
  selector:
    matchLabels:
      {{- include "walhook.selector" . | nindent 6 }}
  strategy:
    {{- if eq .verb "run" }}
    # The slot has one reader: a new pod would wait for the old one, which a rolling update ends only when the new one is ready.
    type: Recreate
    {{- else }}
    type: RollingUpdate
    {{- end }}
  template:
    metadata:
      labels:
        {{- include "walhook.labels" $root | nindent 8 }}
        app.kubernetes.io/component: {{ .verb }}
        {{- with $values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        checksum/config: {{ include "walhook.toml" $root | sha256sum }}
        {{- with $values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "walhook.serviceAccount" $root }}
      automountServiceAccountToken: false
      # Above shutdown_timeout_ms: the last acknowledgements are confirmed to PostgreSQL after it.
      terminationGracePeriodSeconds: {{ add (div (int $values.shutdownTimeoutMs) 1000) 10 }}
      securityContext:
        runAsNonRoot: true
        runAsUser: 65532
        runAsGroup: 65532
        fsGroup: 65532
        seccompProfile: {type: RuntimeDefault}
      {{- with $values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      containers:
        - name: walhook
          image: "{{ $values.image.repository }}:{{ $values.image.tag | default $root.Chart.AppVersion }}"
          imagePullPolicy: {{ $values.image.pullPolicy }}
          args:
            - {{ .verb }}
            {{- range .args }}
            - {{ . | quote }}
            {{- end }}
            {{- range .process.extraArgs }}
            - {{ . | quote }}
            {{- end }}
          env:
            - {name: WALHOOK_CONFIG, value: /etc/walhook/walhook.toml}
            - {name: WALHOOK_LOG_FORMAT, value: {{ $values.logFormat | quote }}}
            - {name: DATABASE_URL, value: {{ .process.postgres.url | quote }}}
            - {name: PGPASSWORD_FILE, value: /run/secrets/walhook/postgres-password}
            {{- with $values.nats.url }}
            - {name: WALHOOK_NATS_URL, value: {{ . | quote }}}
            {{- end }}
            {{- if $values.nats.credentialsSecret.name }}
            - {name: {{ $values.nats.credentialsSecret.variable }}, value: /run/secrets/walhook/nats}
            {{- end }}
            {{- with .process.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            - {name: http, containerPort: {{ $values.http.port }}}
          # Alive: its main loop goes on. An outage of PostgreSQL or NATS does not restart it.
          livenessProbe:
            httpGet: {path: /healthz, port: http}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          # Ready: events can flow.
          readinessProbe:
            httpGet: {path: /readyz, port: http}
            periodSeconds: 5
            timeoutSeconds: 5
          resources:
            {{- toYaml .process.resources | nindent 12 }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
          volumeMounts:
            - {name: config, mountPath: /etc/walhook/walhook.toml, subPath: walhook.toml, readOnly: true}
            - {name: secrets, mountPath: /run/secrets/walhook, readOnly: true}
            {{- if or $values.postgresCa.configMap $values.postgresCa.secret }}
            - {name: postgres-ca, mountPath: /etc/walhook/postgres-ca, readOnly: true}
            {{- end }}
      volumes:
        - name: config
          configMap: {name: {{ include "walhook.name" $root }}}
        - name: secrets
          projected:
            defaultMode: 0440
            sources:
              - secret:
                  name: {{ .process.postgres.passwordSecret.name }}
                  items: [{key: {{ .process.postgres.passwordSecret.key }}, path: postgres-password}]
              - secret:
                  name: {{ $values.http.tokenSecret.name }}
                  items: [{key: {{ $values.http.tokenSecret.key }}, path: http-token}]
              {{- with $values.nats.credentialsSecret }}
              {{- if .name }}
              - secret:
                  name: {{ .name }}
                  items: [{key: {{ .key }}, path: nats}]
              {{- end }}
              {{- end }}
        {{- with $values.postgresCa.configMap }}
        - name: postgres-ca
          configMap: {name: {{ . }}}
        {{- end }}
        {{- with $values.postgresCa.secret }}
        - name: postgres-ca
          secret: {secretName: {{ . }}}
        {{- end }}
      {{- with $values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
{{- end }}

{{- define "walhook.toml" -}}
shutdown_timeout_ms = {{ int .Values.shutdownTimeoutMs }}
{{ .Values.config }}
[http]
listen = "0.0.0.0:{{ int .Values.http.port }}"
token_file = "/run/secrets/walhook/http-token"
{{- end }}
