// A worker in Node.js: takes events from JetStream and calls their webhooks. What it promises: ../README.md.
import { createDecipheriv, createHmac, hkdfSync } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { AckPolicy, jetstream, jetstreamManager } from '@nats-io/jetstream';
import { connect, headers, nanos } from '@nats-io/transport-node';

const {
  NATS_URL = 'nats://localhost:4222', STREAM = 'WEBHOOKS', CONSUMER = 'worker-node', CALLS = '16',
  MAX_ATTEMPTS = '5', RETRY_MS = '1000', STATS_MS = '10000', WEBHOOK_URL, WEBHOOK_SECRET, DATABASE_URL,
  SEAL_KEYS_DIR = '.',
} = process.env;

const nc = await connect({ servers: NATS_URL, maxReconnectAttempts: -1 });
const js = jetstream(nc);
const jsm = await jetstreamManager(nc);
await jsm.consumers.add(STREAM, {
  durable_name: CONSUMER,
  ack_policy: AckPolicy.Explicit,
  ack_wait: nanos(30_000), // longer than a call may take
  max_deliver: -1, // attempts are counted here, so that none ends without a dead letter
});

function signed(id, body) {
  const timestamp = Math.floor(Date.now() / 1000).toString();
  const signature = { 'webhook-id': id, 'webhook-timestamp': timestamp };
  if (WEBHOOK_SECRET) {
    const key = Buffer.from(WEBHOOK_SECRET.replace(/^whsec_/, ''), 'base64');
    const mac = createHmac('sha256', key).update(`${id}.${timestamp}.${body}`).digest('base64');
    signature['webhook-signature'] = `v1,${mac}`;
  }
  return signature;
}

// The body of a message, opened if it is sealed: ../../../docs/sealed-payloads.md.
async function opened(msg) {
  const seal = msg.headers?.get('Walhook-Sealed');
  if (!seal) return msg.data;
  const [version, label, , ...rest] = seal.split(' '); // v1 <key>.<key id> <event id>
  if (version !== 'v1' || rest.length || !/^[\w-]+\.[\w-]+$/.test(label)) throw new Error(`sealed in a way that this worker does not know: ${seal}`);
  const secret = Buffer.from((await readFile(join(SEAL_KEYS_DIR, label), 'utf8')).trim(), 'hex');
  const [salt, nonce] = [msg.data.subarray(0, 16), msg.data.subarray(16, 28)];
  const key = Buffer.from(hkdfSync('sha256', secret, salt, 'walhook sealed v1', 32));
  const decipher = createDecipheriv('aes-256-gcm', key, nonce, { authTagLength: 16 });
  decipher.setAAD(Buffer.from(seal));
  decipher.setAuthTag(msg.data.subarray(-16));
  return Buffer.concat([decipher.update(msg.data.subarray(28, -16)), decipher.final()]);
}

async function call(msg) {
  const event = JSON.parse(Buffer.from(await opened(msg)).toString());
  const body = JSON.stringify(event.data);
  const response = await fetch(WEBHOOK_URL ?? event.webhook_url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...event.headers, ...signed(event.id.replaceAll('.', '_'), body) },
    body,
    redirect: 'manual', // a redirect is a failure
    signal: AbortSignal.timeout(10_000),
  });
  await response.arrayBuffer(); // the connection is free for the next call
  if (!response.ok) throw new Error(`answered ${response.status}`);
}

async function giveUp(msg, reason) {
  const letter = headers();
  letter.set('Nats-Msg-Id', `dlq.${STREAM}.${CONSUMER}.${msg.seq}`);
  letter.set('Walhook-Reason', reason.replace(/[\r\n]+/g, ' '));
  const seal = msg.headers?.get('Walhook-Sealed');
  if (seal) letter.set('Walhook-Sealed', seal); // without it nobody can open the letter
  await js.publish(`dlq.${msg.subject}`, msg.data, { headers: letter });
  msg.term();
}

let calls = 0, milliseconds = 0;

async function handle(msg) {
  const started = performance.now();
  const attempt = msg.info.deliveryCount;
  const wait = Math.min(Number(RETRY_MS) * 2 ** (attempt - 1), 3_600_000);
  try {
    await call(msg);
    msg.ack();
  } catch (error) {
    const reason = String(error.cause?.message ?? error.message);
    console.error(`${msg.subject} #${msg.seq}, attempt ${attempt}: ${reason}`);
    if (attempt < Number(MAX_ATTEMPTS)) msg.nak(wait);
    // Where no stream takes the dead letter the event stays.
    else await giveUp(msg, reason).catch((problem) => { console.error(`dead letter: ${problem.message}`); msg.nak(wait); });
  }
  calls += 1;
  milliseconds += performance.now() - started;
}

let stopping = false;
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => { stopping = true; });

async function lane() {
  const consumer = await js.consumers.get(STREAM, CONSUMER);
  while (!stopping) {
    try {
      const msg = await consumer.next({ expires: 2_000 });
      if (msg) await handle(msg);
    } catch (error) {
      console.error(`cannot take from ${STREAM}: ${error.message}`); // the connection comes back by itself
      await new Promise((resolve) => setTimeout(resolve, 1_000));
    }
  }
}

async function report() {
  const { default: pg } = await import('pg');
  const database = new pg.Pool({ connectionString: DATABASE_URL, max: 1 });
  database.on('error', (error) => console.error(`statistics: ${error.message}`));
  return setInterval(async () => {
    try {
      const info = await jsm.consumers.info(STREAM, CONSUMER);
      await database.query('SELECT rule_nats_consumer_update_stats($1, $2, $3, $4, $5, $6)', [
        STREAM, CONSUMER, info.delivered.consumer_seq, info.ack_floor.consumer_seq,
        info.num_pending + info.num_ack_pending, calls ? (milliseconds / calls).toFixed(2) : null,
      ]);
    } catch (error) {
      console.error(`statistics: ${error.message}`); // they hold nothing up
    }
  }, Number(STATS_MS));
}

const timer = DATABASE_URL && await report();
console.log(`${CONSUMER} takes from ${STREAM} at ${NATS_URL}`);
await Promise.all(Array.from({ length: Number(CALLS) }, lane));
clearInterval(timer);
await nc.drain(); // the last acknowledgements are out
process.exit(0);
