"""A worker in Python: takes events from JetStream and calls their webhooks. What it promises: ../README.md."""

import asyncio
import base64
import concurrent.futures
import hashlib
import hmac
import json
import os
import re
import signal
import sys
import time
import urllib.error
import urllib.request

import nats
from nats.errors import Error
from nats.js.api import AckPolicy, ConsumerConfig

NATS_URL = os.environ.get("NATS_URL", "nats://localhost:4222")
STREAM = os.environ.get("STREAM", "WEBHOOKS")
CONSUMER = os.environ.get("CONSUMER", "worker-python")
CALLS = int(os.environ.get("CALLS", "16"))
MAX_ATTEMPTS = int(os.environ.get("MAX_ATTEMPTS", "5"))
RETRY_MS = int(os.environ.get("RETRY_MS", "1000"))
STATS_MS = int(os.environ.get("STATS_MS", "10000"))
WEBHOOK_URL = os.environ.get("WEBHOOK_URL")
SECRET = os.environ.get("WEBHOOK_SECRET")
DATABASE_URL = os.environ.get("DATABASE_URL")
SEAL_KEYS_DIR = os.environ.get("SEAL_KEYS_DIR", ".")

threads = concurrent.futures.ThreadPoolExecutor(CALLS + 1)
durations = []


class NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None  # a redirect is a failure


http = urllib.request.build_opener(NoRedirects)


def say(text):
    print(text, file=sys.stderr, flush=True)


def signed(event_id, body):
    timestamp = str(int(time.time()))
    headers = {"webhook-id": event_id, "webhook-timestamp": timestamp}
    if SECRET:
        key = base64.b64decode(SECRET.removeprefix("whsec_"))
        mac = hmac.new(key, f"{event_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
        headers["webhook-signature"] = "v1," + base64.b64encode(mac).decode()
    return headers


def opened(seal, data):
    """The body of a message, opened if it is sealed: ../../../docs/sealed-payloads.md."""
    if not seal:
        return data
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    version, label, *event_id = seal.split(" ")  # v1 <key>.<key id> <event id>
    if version != "v1" or len(event_id) != 1 or not re.fullmatch(r"[\w-]+\.[\w-]+", label, re.ASCII):
        raise RuntimeError(f"sealed in a way that this worker does not know: {seal}")
    with open(os.path.join(SEAL_KEYS_DIR, label)) as file:
        secret = bytes.fromhex(file.read().strip())
    salt, nonce, sealed = data[:16], data[16:28], data[28:]
    extracted = hmac.digest(salt, secret, "sha256")
    key = hmac.digest(extracted, b"walhook sealed v1\x01", "sha256")  # HKDF-SHA256 for one block
    return AESGCM(key).decrypt(nonce, sealed, seal.encode())


def call(seal, data):
    event = json.loads(opened(seal, data))
    body = json.dumps(event["data"], ensure_ascii=False).encode()
    headers = {"content-type": "application/json", **event.get("headers", {})}
    headers.update(signed(event["id"].replace(".", "_"), body))
    request = urllib.request.Request(WEBHOOK_URL or event["webhook_url"], body, headers, method="POST")
    try:
        with http.open(request, timeout=10):
            pass  # only 2xx comes to here
    except urllib.error.HTTPError as error:
        error.close()
        raise RuntimeError(f"answered {error.code}") from None


async def give_up(js, msg, reason):
    letter = {
        "Nats-Msg-Id": f"dlq.{STREAM}.{CONSUMER}.{msg.metadata.sequence.stream}",
        "Walhook-Reason": " ".join(reason.split()),
    }
    if seal := (msg.headers or {}).get("Walhook-Sealed"):
        letter["Walhook-Sealed"] = seal  # without it nobody can open the letter
    await js.publish(f"dlq.{msg.subject}", msg.data, headers=letter)
    await msg.term()


async def handle(js, msg):
    started = time.monotonic()
    attempt = msg.metadata.num_delivered
    wait = min(RETRY_MS / 1000 * 2 ** (attempt - 1), 3600)
    try:
        seal = (msg.headers or {}).get("Walhook-Sealed")
        await asyncio.get_running_loop().run_in_executor(threads, call, seal, msg.data)
        await msg.ack()
    except Exception as error:  # whatever a receiver or a message comes up with
        reason = str(error) or type(error).__name__
        say(f"{msg.subject} #{msg.metadata.sequence.stream}, attempt {attempt}: {reason}")
        try:
            if attempt < MAX_ATTEMPTS:
                await msg.nak(delay=wait)
            else:
                await give_up(js, msg, reason)
        except (Error, asyncio.TimeoutError) as problem:  # no stream takes the dead letter: the event stays
            say(f"dead letter: {problem or type(problem).__name__}")
            await msg.nak(delay=wait)
    durations.append((time.monotonic() - started) * 1000)


def write_statistics(*values):
    import psycopg

    with psycopg.connect(DATABASE_URL, connect_timeout=10) as database:
        database.execute("SELECT rule_nats_consumer_update_stats(%s, %s, %s, %s, %s, %s::numeric)", values)


async def report(js):
    while True:
        await asyncio.sleep(STATS_MS / 1000)
        try:
            info = await js.consumer_info(STREAM, CONSUMER)
            average = round(sum(durations) / len(durations), 2) if durations else None
            left = info.num_pending + info.num_ack_pending
            figures = (STREAM, CONSUMER, info.delivered.consumer_seq, info.ack_floor.consumer_seq, left, average)
            await asyncio.get_running_loop().run_in_executor(threads, write_statistics, *figures)
        except Exception as error:
            say(f"statistics: {error}")  # they hold nothing up


async def main():
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    nc = await nats.connect(NATS_URL, max_reconnect_attempts=-1)
    js = nc.jetstream()
    await js.add_consumer(
        STREAM,
        ConsumerConfig(
            durable_name=CONSUMER,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=30,  # longer than a call may take
            max_deliver=-1,  # attempts are counted here, so that none ends without a dead letter
        ),
    )
    inbox = await js.pull_subscribe_bind(consumer=CONSUMER, stream=STREAM)
    reporter = asyncio.create_task(report(js)) if DATABASE_URL else None
    say(f"{CONSUMER} takes from {STREAM} at {NATS_URL}")
    calls = set()
    while not stopping.is_set():
        if len(calls) == CALLS:
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            continue
        try:
            messages = await inbox.fetch(CALLS - len(calls), timeout=1)
        except asyncio.TimeoutError:
            continue  # nothing there
        except Error as error:
            say(f"cannot take from {STREAM}: {error or type(error).__name__}")  # the connection comes back by itself
            await asyncio.sleep(1)
            continue
        for msg in messages:
            task = asyncio.create_task(handle(js, msg))
            calls.add(task)
            task.add_done_callback(calls.discard)
    if calls:
        await asyncio.wait(calls)
    if reporter:
        reporter.cancel()
    await nc.close()  # which sends the last acknowledgements
    threads.shutdown(wait=False)


asyncio.run(main())
