// The six classic tutorial programs, each in one self-checking run. usage: tutorials.js URI NAME
// amqplib is found in node_modules of $AMQPLIB, or of ../../amqplib.
'use strict';

const { deepStrictEqual: same } = require('node:assert');
const { createRequire } = require('node:module');
const path = require('node:path');
const amqp = createRequire(path.join(process.env.AMQPLIB || path.join(__dirname, '../../amqplib'), 'run.js'))('amqplib');

const [uri, name] = process.argv.slice(2);
const run = Math.random().toString(36).slice(2, 10);

const receive = (channel, queue, count, onMessage = () => {}) =>
  new Promise((resolve, reject) => {
    const got = [];
    const late = setTimeout(() => reject(new Error(`waited 10 s, have ${got}`)), 10000);
    const take = async (message) => {
      got.push(message.content.toString());
      onMessage(message);
      channel.ack(message);
      if (got.length < count) return;
      clearTimeout(late);
      await channel.cancel(message.fields.consumerTag);
      resolve(got);
    };
    channel.consume(queue, take).catch(reject);
  });

async function privateQueue(channel, exchange, ...keys) {
  const { queue } = await channel.assertQueue('', { exclusive: true });
  for (const key of keys) await channel.bindQueue(queue, exchange, key);
  return queue;
}

const tutorials = {
  async work_queue(channel) {
    const { queue } = await channel.assertQueue(`tasks-${run}`, { durable: true });
    await channel.prefetch(1);
    const tasks = [0, 1, 2, 3, 4].map((n) => `task ${n}`);
    for (const task of tasks) channel.sendToQueue(queue, Buffer.from(task), { persistent: true });
    same(await receive(channel, queue, 5), tasks);
    await channel.deleteQueue(queue);
  },
  async publish_subscribe(channel) {
    const { exchange } = await channel.assertExchange(`logs-${run}`, 'fanout');
    const listeners = [await privateQueue(channel, exchange, ''), await privateQueue(channel, exchange, '')];
    channel.publish(exchange, '', Buffer.from('hello'));
    for (const queue of listeners) same(await receive(channel, queue, 1), ['hello']);
    await channel.deleteExchange(exchange);
  },
  async routing(channel) {
    const { exchange } = await channel.assertExchange(`direct-${run}`, 'direct');
    const errors = await privateQueue(channel, exchange, 'error');
    const everything = await privateQueue(channel, exchange, 'info', 'warning', 'error');
    for (const key of ['info', 'error', 'warning', 'debug']) channel.publish(exchange, key, Buffer.from(key));
    same(await receive(channel, everything, 3), ['info', 'error', 'warning']);
    same(await receive(channel, errors, 1), ['error']);
    await channel.deleteExchange(exchange);
  },
  async topics(channel) {
    const { exchange } = await channel.assertExchange(`topic-${run}`, 'topic');
    const kernel = await privateQueue(channel, exchange, 'kern.*');
    const critical = await privateQueue(channel, exchange, '*.critical', 'all.#');
    for (const key of ['kern.info', 'kern.critical', 'cron.critical', 'all.of.it', 'cron.info']) channel.publish(exchange, key, Buffer.from(key));
    same(await receive(channel, kernel, 2), ['kern.info', 'kern.critical']);
    same(await receive(channel, critical, 3), ['kern.critical', 'cron.critical', 'all.of.it']);
    await channel.deleteExchange(exchange);
  },
  async rpc(channel) {
    const { queue: requests } = await channel.assertQueue(`rpc-${run}`, { durable: false, autoDelete: true });
    const { queue: replies } = await channel.assertQueue('', { exclusive: true });
    channel.sendToQueue(requests, Buffer.from('30'), { replyTo: replies, correlationId: run });
    const fibonacci = (n) => (n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2));
    await receive(channel, requests, 1, ({ content, properties: { replyTo, correlationId } }) =>
      channel.sendToQueue(replyTo, Buffer.from(String(fibonacci(Number(content)))), { correlationId }),
    );
    same(await receive(channel, replies, 1, (message) => same(message.properties.correlationId, run)), ['832040']);
  },
  async confirms(_, connection) {
    const channel = await connection.createConfirmChannel();
    const { queue } = await channel.assertQueue('', { exclusive: true });
    for (let n = 0; n < 50; n++) channel.sendToQueue(queue, Buffer.from(String(n)), { mandatory: true });
    await channel.waitForConfirms();
    same((await channel.checkQueue(queue)).messageCount, 50);
  },
};

(async () => {
  const connection = await amqp.connect(uri);
  await tutorials[name](await connection.createChannel(), connection);
  await connection.close();
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
