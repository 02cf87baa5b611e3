const { connect, StringCodec } = require('nats');
const axios = require('axios');

async function startWorker() {
  // Connect to NATS
  const nc = await connect({
    servers: 'nats://localhost:4222',
  });

  const sc = StringCodec();
  const js = nc.jetstream();

  // Create durable consumer (survives restarts)
  const consumer = await js.consumers.get('WEBHOOKS', 'webhook-worker-1');

  console.log('Worker started, listening for webhook events...');

  // Subscribe to webhooks.* subject with queue group
  const subscription = await consumer.consume({
    callback: async (msg) => {
      const startTime = Date.now();

      try {
        // Parse payload
        const payload = JSON.parse(sc.decode(msg.data));
        const subject = msg.subject;

        console.log(`Processing: ${subject}`, payload);

        // Extract webhook config from subject or payload
        // In real implementation, fetch webhook URL from cache or database

        // Make HTTP request
        const response = await axios.post(
          payload.webhook_url,
          payload.data,
          {
            headers: payload.headers || {},
            timeout: 5000
          }
        );

        console.log(`Success: ${subject} - Status ${response.status}`);

        // Acknowledge message (removes from queue)
        msg.ack();

        const duration = Date.now() - startTime;
        console.log(`Processed in ${duration}ms`);

      } catch (error) {
        console.error(`Error processing message:`, error.message);

        // Negative acknowledge (requeue for retry)
        // JetStream will redeliver based on consumer config
        msg.nak();
      }
    },
  });

  // Graceful shutdown
  process.on('SIGINT', async () => {
    console.log('Shutting down...');
    await subscription.close();
    await nc.close();
    process.exit(0);
  });
}

startWorker().catch(console.error);
