#!/usr/bin/env bash
# A worker in shell: the nats CLI takes events from JetStream, curl calls their webhooks. What it promises: ../README.md.
# A `nats` is started for each word to JetStream, so it does some tens of events a second, not thousands.
set -euo pipefail

export NATS_URL=${NATS_URL:-nats://localhost:4222}
stream=${STREAM:-WEBHOOKS} consumer=${CONSUMER:-worker-shell} calls=${CALLS:-16}
max_attempts=${MAX_ATTEMPTS:-5} retry_ms=${RETRY_MS:-1000} stats_ms=${STATS_MS:-10000}

say() { printf '%s\n' "$*" >&2; }

publish() { nats --timeout 5s publish --quiet --no-templates "$@" >/dev/null; }

# The signature of what comes in, by Standard Webhooks.
sign() {
  local key
  key=$(base64 -d <<<"${WEBHOOK_SECRET#whsec_}" | od -An -v -tx1 | tr -d ' \n')
  openssl dgst -sha256 -mac HMAC -macopt "hexkey:$key" -binary | base64
}

# openssl's command line has no AES-GCM: what is sealed (docs/sealed-payloads.md) is for the other workers.
# Calls the webhook; says why not where it did not answer 2xx.
call() { # id url body header…
  local id=$1 url=$2 body=$3 now answer
  [ "$id" != sealed ] || { printf 'it is sealed, and this worker cannot open it'; return 1; }
  shift 3
  now=$(date +%s)
  local headers=(-H "webhook-id: $id" -H "webhook-timestamp: $now")
  if [ -n "${WEBHOOK_SECRET:-}" ]; then
    headers+=(-H "webhook-signature: v1,$(printf '%s.%s.%s' "$id" "$now" "$body" | sign)")
  fi
  # Redirects are not followed: one is a failure.
  answer=$(printf %s "$body" | curl --silent --show-error --globoff --max-time 10 --proto =http,https \
    --output /dev/null --write-out 'answered %{http_code}' "$@" "${headers[@]}" --data-binary @- "$url" 2>&1) || :
  [[ $answer =~ ^answered\ 2..$ ]] || { printf %s "${answer//$'\n'/ }"; return 1; }
}

give_up() { # reason
  base64 -d <<<"$data" | publish "dlq.$subject" --jetstream --force-stdin \
    -H "Nats-Msg-Id:dlq.$stream.$consumer.$sequence" -H "Walhook-Reason:${1//\{\{/\{ \{}"
}

# Messages as `nats subscribe --dump` writes them come in; for each, a line of words for the shell goes out.
words_of_messages() {
  stdbuf -oL tr '\0' '\n' | jq --unbuffered -r '
    (.Header["Walhook-Sealed"]? // [] | length > 0) as $sealed
    | (if $sealed then {id: "sealed"} else (try (.Data | @base64d | fromjson | objects) catch null // {}) end) as $event
    | ({"content-type": "application/json"} + (($event.headers // {}) | with_entries(.key |= ascii_downcase))) as $headers
    | [.Subject, .Reply, .Data, "\($event.id // "" | gsub("\\."; "_"))", "\($event.webhook_url // "")", ($event.data | tojson)]
      + [$headers | to_entries[] | "-H", "\(.key): \(.value)"]
    | map(. // "" | gsub("[\r\n]"; " ")) | @sh'
}

# One message: the call, and one word to JetStream.
handle() { # subject reply data id url body header…
  local started=${EPOCHREALTIME/./} subject=$1 reply=$2 data=$3 id=$4 url=$5 body=$6 headers=("${@:7}") reason
  # $JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.…, or with a domain and an account before the stream.
  local token at=2
  IFS=. read -ra token <<<"$reply"
  [ ${#token[@]} -le 9 ] || at=4
  local attempt=${token[at + 2]} sequence=${token[at + 3]}
  if reason=$(call "$id" "${WEBHOOK_URL:-$url}" "$body" "${headers[@]}"); then
    publish -- "$reply" +ACK
  else
    say "$subject #$sequence, attempt $attempt: $reason"
    local wait=$((retry_ms << (attempt < 22 ? attempt - 1 : 21)))
    [ "$wait" -le 3600000 ] || wait=3600000
    if [ "$attempt" -ge "$max_attempts" ] && give_up "$reason"; then
      publish -- "$reply" +TERM
    else # also where no stream takes the dead letter: the event stays
      publish -- "$reply" "-NAK {\"delay\": ${wait}000000}"
    fi
  fi
  echo $((${EPOCHREALTIME/./} - started)) >>"$work/durations"
}

# How long events take goes to the database; that holds nothing up.
report() {
  local info
  while sleep "$((stats_ms / 1000)).$(printf %03d $((stats_ms % 1000)))" && kill -0 $$ 2>/dev/null; do
    info=$(nats consumer info "$stream" "$consumer" --json |
      jq -r '"\(.delivered.consumer_seq), \(.ack_floor.consumer_seq), \(.num_pending + .num_ack_pending)"') &&
      psql "$DATABASE_URL" -qAtX -o /dev/null -v ON_ERROR_STOP=1 -v stream="$stream" -v consumer="$consumer" <<<"
        SELECT rule_nats_consumer_update_stats(:'stream', :'consumer', $info, $(
        awk '{ sum += $1 } END { if (NR) printf "%.2f", sum / NR / 1000; else print "NULL" }' "$work/durations"));" ||
      say "statistics: not written"
  done
}

work=$(mktemp -d)
: >"$work/durations"
helpers=()
trap 'kill "${helpers[@]}" 2>/dev/null || :; rm -rf "$work"' EXIT
stopping=
trap 'stopping=1' TERM INT

# Attempts are counted here, so that none ends without a dead letter: --max-deliver -1. Calls may take less than 30 s.
nats consumer info "$stream" "$consumer" >/dev/null 2>&1 ||
  nats consumer add "$stream" "$consumer" --pull --deliver all --ack explicit --wait 30s --max-deliver=-1 --defaults >/dev/null

inbox=_INBOX.worker.$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
exec {dump}< <(exec nats subscribe "$inbox" --dump=-)
helpers+=($!)
exec {messages}< <(words_of_messages <&"$dump") # ends with it
until read -r -t 0.2 -u "$messages"; do # what comes before the subscription is lost
  kill -0 "${helpers[0]}" || exit 1
  publish "$inbox" 'is anybody there?' || sleep 1
done
if [ -n "${DATABASE_URL:-}" ]; then
  report &
  helpers+=($!)
fi
say "$consumer takes from $stream at $NATS_URL"

while [ -z "$stopping" ]; do
  # As many as can be called at once; the request ends by itself after two seconds.
  publish --reply "$inbox" "\$JS.API.CONSUMER.MSG.NEXT.$stream.$consumer" "{\"batch\": $calls, \"expires\": 2000000000}" ||
    { sleep 1; continue; } # the server comes back
  running=()
  while [ ${#running[@]} -lt "$calls" ] && IFS= read -r -t 4 -u "$messages" line; do
    eval "words=($line)" # quoted by jq
    [[ ${words[1]} == '$JS.ACK.'* ]] || break # not an event: the request has ended
    handle "${words[@]}" &
    running+=($!)
  done
  for call in "${running[@]}"; do # a signal ends a wait, not the call
    while kill -0 "$call" 2>/dev/null; do wait "$call" || :; done
  done
done
