// The scenarios of ../SCENARIOS.md with amqplib.
'use strict';

const { randomBytes } = require('node:crypto');
const path = require('node:path');
const { scenario, main, Inbox, Skip, check, equal, until, quiet, refused } = require('./harness');

const numbers = (from, to) => Array.from({ length: to - from + 1 }, (_, i) => String(from + i));

function put(channel, queue, bodies, { exchange = '', ...options } = {}) {
  for (const body of [].concat(bodies)) channel.publish(exchange, queue, Buffer.isBuffer(body) ? body : Buffer.from(String(body)), options);
}

// Resolves to 'ack' or 'nack'.
function confirmed(channel, exchange, key, body, options = {}) {
  return new Promise((resolve) => channel.publish(exchange, key, Buffer.from(body), options, (error) => resolve(error ? 'nack' : 'ack')));
}

function checkDeath(message, index, queue, reason, count, exchange, keys) {
  const { time, 'original-expiration': _, ...death } = message.properties.headers['x-death'][index];
  equal(death, { queue, reason, count, exchange, 'routing-keys': keys }, `x-death ${index}`);
  equal(time['!'], 'timestamp', 'type of x-death time');
  return message.properties.headers['x-death'][index];
}

async function deadLetters(run, channel) {
  const dlx = await run.exchange(channel, 'fanout');
  const dead = await run.queue(channel);
  await channel.bindQueue(dead, dlx, '');
  return [dlx, await Inbox.open(await run.channel(), dead, { noAck: true })];
}

scenario(1, 'work_queue_acks_and_retry', {}, async (run) => {
  const setup = await run.channel();
  const queue = await run.queue(setup, { durable: true });
  const tasks = numbers(0, 19);
  const done = [];
  const wrong = [];
  const onMessage = (message, { channel }) => {
    const task = message.content.toString();
    if (task % 3 === 0 && !message.fields.redelivered) return channel.nack(message, false, true);
    if (message.fields.redelivered !== (task % 3 === 0)) wrong.push(task);
    channel.ack(message);
    done.push(task);
  };
  for (let i = 0; i < 2; i++) await Inbox.open(await run.channel(await run.connect()), queue, { prefetch: 1, onMessage });
  put(setup, queue, tasks, { persistent: true });
  await until(
    () => done.length >= 20,
    () => `20 tasks, have ${done}`,
  );
  await quiet();
  equal(done.sort((a, b) => a - b), tasks, 'tasks done');
  equal(wrong, [], 'tasks with a wrong redelivered flag');
  equal(await run.ready(queue), [0, 2], 'messages and consumers');
});

scenario(2, 'topic_logs', {}, async (run) => {
  const channel = await run.channel();
  const exchange = await run.exchange(channel, 'topic');
  const keys = ['auth.error', 'auth.info', 'kernel.error', 'kernel.info', 'auth.login.error', 'auth', ''];
  const want = { '*.error': ['auth.error', 'kernel.error'], '#': keys, 'auth.*': ['auth.error', 'auth.info'] };
  const inboxes = {};
  for (const pattern of Object.keys(want)) {
    const queue = await run.queue(channel, { exclusive: true });
    await channel.bindQueue(queue, exchange, pattern);
    inboxes[pattern] = await Inbox.open(channel, queue, { noAck: true });
  }
  for (const key of keys) put(channel, key, key, { exchange });
  for (const [pattern, expected] of Object.entries(want)) await inboxes[pattern].take(expected.length);
  await quiet();
  for (const [pattern, expected] of Object.entries(want)) {
    equal(inboxes[pattern].bodies, expected, `messages of ${pattern}`);
    equal(
      inboxes[pattern].messages.map((m) => m.fields.routingKey),
      expected,
      `routing keys of ${pattern}`,
    );
  }
});

scenario(3, 'dead_letter_after_ttl', {}, async (run) => {
  const channel = await run.channel();
  const [dlx, letters] = await deadLetters(run, channel);
  const byQueue = await run.queue(channel, { messageTtl: 200, deadLetterExchange: dlx });
  const byMessage = await run.queue(channel, { deadLetterExchange: dlx, deadLetterRoutingKey: 'moved' });
  const began = performance.now();
  put(channel, byQueue, 'a', { headers: { mine: 7 } });
  await letters.take(1);
  put(channel, byMessage, 'b', { expiration: '150' });
  await letters.take(2);
  const [a, b] = letters.messages;
  check(a.at - began >= 199, 'came before its TTL');
  equal(letters.bodies, ['a', 'b'], 'dead letters');
  equal([a.fields.exchange, a.fields.routingKey, b.fields.exchange, b.fields.routingKey], [dlx, byQueue, dlx, 'moved'], 'exchanges and keys');
  const first = checkDeath(a, 0, byQueue, 'expired', 1, '', [byQueue]);
  check(!('original-expiration' in first), 'a had no expiration');
  equal(a.properties.headers.mine, 7, 'own header');
  equal(checkDeath(b, 0, byMessage, 'expired', 1, '', [byMessage])['original-expiration'], '150', 'original-expiration');
  equal(b.properties.expiration, undefined, 'expiration of the dead letter');
  for (const [message, queue] of [[a, byQueue], [b, byMessage]]) {
    const h = message.properties.headers;
    equal([h['x-first-death-queue'], h['x-first-death-reason'], h['x-first-death-exchange']], [queue, 'expired', ''], 'x-first-death');
  }
});

scenario(4, 'dead_letter_after_three_retries', { braidOnly: true }, async (run) => {
  for (const how of ['nack', 'reject']) {
    const channel = await run.channel();
    const [dlx, letters] = await deadLetters(run, channel);
    const queue = await run.queue(channel, { deadLetterExchange: dlx, arguments: { 'x-max-retries': 3 } });
    const seen = [];
    const good = [];
    await Inbox.open(channel, queue, {
      prefetch: 1,
      onMessage: (message) => {
        if (message.content.toString() !== 'bad') {
          good.push(message.content.toString());
          return channel.ack(message);
        }
        seen.push(message.fields.redelivered);
        if (how === 'nack') channel.nack(message, false, true);
        else channel.reject(message, true);
      },
    });
    put(channel, queue, ['before', 'bad', 'after']);
    await letters.take(1, 'dead letters');
    await until(() => good.length === 2, 'the neighbours');
    await quiet();
    equal(seen, [false, true, true, true], `redelivered flags by ${how}`);
    equal(good, ['before', 'after'], 'neighbours');
    equal(letters.bodies, ['bad'], 'dead letters');
    checkDeath(letters.messages[0], 0, queue, 'delivery_limit', 1, '', [queue]);
    equal((await run.ready(queue))[0], 0, 'messages left');
  }
});

scenario(5, 'fanout_to_two_services', {}, async (run) => {
  const channel = await run.channel();
  const exchange = await run.exchange(channel, 'fanout', { durable: true });
  const services = [await run.queue(channel, { durable: true }), await run.queue(channel, { durable: true })];
  const inboxes = [];
  for (const queue of services) {
    await channel.bindQueue(queue, exchange, '');
    await channel.bindQueue(queue, exchange, 'another key');
    inboxes.push(await Inbox.open(await run.channel(await run.connect()), queue, { ack: true }));
  }
  const events = numbers(0, 9);
  for (const event of events) put(channel, `any.${event}`, event, { exchange });
  for (const inbox of inboxes) await inbox.take(10);
  await channel.unbindQueue(services[0], exchange, '');
  await channel.unbindQueue(services[0], exchange, 'another key');
  put(channel, '', 'last', { exchange });
  await inboxes[1].take(11);
  await quiet();
  equal(inboxes[0].bodies, events, 'first service');
  equal(inboxes[1].bodies, [...events, 'last'], 'second service');
});

function serveSquares(run, queue, names = []) {
  return run
    .connect()
    .then((connection) => run.channel(connection))
    .then((channel) =>
      Inbox.open(channel, queue, {
        prefetch: 1,
        onMessage: (message) => {
          names.push(message.properties.replyTo);
          put(channel, message.properties.replyTo, Number(message.content.toString()) ** 2, { correlationId: message.properties.correlationId });
          channel.ack(message);
        },
      }),
    );
}

async function callSquares(channel, requests, replyTo, inbox) {
  for (let n = 0; n < 10; n++) put(channel, requests, n, { replyTo, correlationId: `call-${n}` });
  await inbox.take(10, 'answers');
  const answers = Object.fromEntries(inbox.messages.map((m) => [m.properties.correlationId, m.content.toString()]));
  equal(answers, Object.fromEntries(numbers(0, 9).map((n) => [`call-${n}`, String(n * n)])), 'answers');
}

scenario(6, 'rpc_reply_queue', {}, async (run) => {
  const channel = await run.channel();
  const requests = await run.queue(channel);
  await serveSquares(run, requests);
  const { queue: replies } = await channel.assertQueue('', { exclusive: true });
  check(replies.startsWith('amq.gen-'), `server-named queue is ${replies}`);
  await callSquares(channel, requests, replies, await Inbox.open(channel, replies, { noAck: true }));
});

scenario(7, 'rpc_direct_reply_to', {}, async (run) => {
  const channel = await run.channel();
  const requests = await run.queue(channel);
  const names = [];
  await serveSquares(run, requests, names);
  const direct = 'amq.rabbitmq.reply-to';
  await callSquares(channel, requests, direct, await Inbox.open(channel, direct, { noAck: true }));
  check(
    names.every((name) => name.startsWith(`${direct}.`)),
    `reply-to was rewritten: ${names[0]}`,
  );
  const publish = (c) => put(c, requests, 1, { replyTo: direct });
  await refused(406, 'PRECONDITION_FAILED - fast reply consumer does not exist', await run.channel(), publish, 'no reply consumer');
});

scenario(8, 'priorities', {}, async (run) => {
  const channel = await run.channel();
  const queue = await run.queue(channel, { maxPriority: 10 });
  const sent = [['low1', 1], ['none1'], ['high1', 9], ['mid1', 5], ['low2', 1], ['over1', 200], ['none2', 0], ['high2', 9], ['top1', 10], ['mid2', 5]];
  for (const [body, priority] of sent) put(channel, queue, body, { priority });
  await run.untilReady(queue, sent.length);
  const inbox = await Inbox.open(channel, queue, { prefetch: 1, ack: true });
  await inbox.take(sent.length);
  equal(inbox.bodies, ['over1', 'top1', 'high1', 'high2', 'mid1', 'mid2', 'low1', 'low2', 'none1', 'none2'], 'order');
});

scenario(9, 'headers_routing', {}, async (run) => {
  const channel = await run.channel();
  const exchange = await run.exchange(channel, 'headers');
  const bindings = {
    all: { 'x-match': 'all', type: 'report', format: 'pdf', 'x-ignored': '1' },
    default: { type: 'report', format: 'pdf' },
    any: { 'x-match': 'any', type: 'report', format: 'pdf', 'x-ignored': '1' },
    'all-with-x': { 'x-match': 'all-with-x', type: 'report', 'x-tenant': 'a' },
    'any-with-x': { 'x-match': 'any-with-x', type: 'log', 'x-tenant': 'a' },
    number: { 'x-match': 'all', size: 3 },
    exists: { 'x-match': 'all', format: null },
  };
  const queues = {};
  for (const [name, args] of Object.entries(bindings)) {
    queues[name] = await run.queue(channel);
    try {
      await channel.bindQueue(queues[name], exchange, '', args);
    } catch (error) {
      if (name.endsWith('-with-x') && !run.braid) throw new Skip(`peer refuses ${name}`);
      throw error;
    }
  }
  const messages = {
    1: { type: 'report', format: 'pdf' },
    2: { type: 'report', format: 'txt', 'x-tenant': 'a' },
    3: { type: 'log', 'x-ignored': '1' },
    4: { 'x-tenant': 'a' },
    5: { size: 3, other: true },
    6: { size: 4 },
    7: {},
    8: { type: 'report', format: 'pdf', 'x-tenant': 'b', 'x-ignored': '2' },
  };
  for (const [body, headers] of Object.entries(messages)) put(channel, 'whatever', body, { exchange, headers });
  put(channel, 'whatever', '9', { exchange });
  const want = {
    all: ['1', '8'],
    default: ['1', '8'],
    any: ['1', '2', '8'],
    'all-with-x': ['2'],
    'any-with-x': ['2', '3', '4'],
    number: ['5'],
    exists: ['1', '2', '8'],
  };
  await run.untilReady(queues.any, 3);
  for (const [name, expected] of Object.entries(want)) {
    await run.untilReady(queues[name], expected.length);
    equal(await run.drainBodies(queues[name]), expected, `messages of ${name}`);
  }
});

scenario(10, 'delayed_messages', {}, async (run) => {
  const exchange = await run.pluginExchange('x-delayed-message', { durable: true, arguments: { 'x-delayed-type': 'direct' } });
  const channel = await run.channel();
  const queue = await run.queue(channel);
  await channel.bindQueue(queue, exchange, 'k');
  const inbox = await Inbox.open(channel, queue, { noAck: true });
  const sent = {};
  for (const delay of [900, 300, 600, 0]) {
    sent[delay] = performance.now();
    put(channel, 'k', delay, { exchange, headers: delay ? { 'x-delay': delay } : {} });
  }
  await inbox.take(4);
  equal(inbox.bodies, ['0', '300', '600', '900'], 'order');
  for (const message of inbox.messages) {
    const delay = Number(message.content.toString());
    check(message.at - sent[delay] >= delay - 1, `${delay} came after ${message.at - sent[delay]} ms`);
  }
});

scenario(11, 'confirms_and_mandatory_returns', {}, async (run) => {
  const channel = await run.confirming();
  const exchange = await run.exchange(channel, 'direct');
  const queue = await run.queue(channel, { durable: true });
  await channel.bindQueue(queue, exchange, 'k');
  const log = [];
  channel.on('return', (message) => log.push(message));
  const acks = await Promise.all(numbers(0, 99).map((n) => confirmed(channel, exchange, 'k', n, { persistent: true, mandatory: true })));
  check(
    acks.every((a) => a === 'ack'),
    'a publish was nacked',
  );
  equal((await run.ready(queue))[0], 100, 'messages after their confirms');
  log.push(await confirmed(channel, exchange, 'nowhere', 'come back', { mandatory: true, headers: { a: 1 }, messageId: 'm1', contentType: 'text/plain' }));
  equal(log.length, 2, 'return and confirm');
  const [back, confirm] = log;
  equal(confirm, 'ack', 'what comes after the return');
  equal([back.fields.replyCode, back.fields.replyText, back.fields.exchange, back.fields.routingKey], [312, 'NO_ROUTE', exchange, 'nowhere'], 'return');
  equal(
    [back.content.toString(), back.properties.headers, back.properties.messageId, back.properties.contentType],
    ['come back', { a: 1 }, 'm1', 'text/plain'],
    'message returned',
  );
  equal(await confirmed(channel, exchange, 'nowhere', 'dropped'), 'ack', 'unroutable and not mandatory');
  equal(await confirmed(channel, exchange, 'k', 'last', { mandatory: true }), 'ack', 'last');
  equal(log.length, 2, 'returns in the end');
  equal(await run.drainBodies(queue), [...numbers(0, 99), 'last'], 'messages');
});

// amqplib has no transactions of its own, but it knows the methods.
const defs = require(path.join(path.dirname(require.resolve('amqplib')), 'lib', 'defs.js'));
const tx = {
  select: (channel) => channel.rpc(defs.TxSelect, {}, defs.TxSelectOk),
  commit: (channel) => channel.rpc(defs.TxCommit, {}, defs.TxCommitOk),
  rollback: (channel) => channel.rpc(defs.TxRollback, {}, defs.TxRollbackOk),
};

scenario(12, 'transactions', {}, async (run) => {
  let channel = await run.channel();
  const queue = await run.queue(channel);
  await tx.select(channel);
  put(channel, queue, ['a', 'b']);
  await quiet(100);
  equal((await run.ready(queue))[0], 0, 'ready before commit');
  await tx.commit(channel);
  equal((await run.ready(queue))[0], 2, 'ready after commit');
  put(channel, queue, 'c');
  await tx.rollback(channel);
  await tx.commit(channel);
  equal((await run.ready(queue))[0], 2, 'ready after rollback');
  let message = await channel.get(queue);
  equal(message.content.toString(), 'a', 'first message');
  channel.ack(message);
  await tx.rollback(channel);
  equal((await run.ready(queue))[0], 1, 'ready after the ack was rolled back');
  await channel.close();
  await run.untilReady(queue, 2);
  channel = await run.channel();
  await tx.select(channel);
  message = await channel.get(queue);
  equal([message.content.toString(), message.fields.redelivered], ['a', true], 'the message comes again');
  channel.ack(message);
  put(channel, queue, 'd');
  await tx.commit(channel);
  await channel.close();
  await quiet(100);
  equal(await run.drainBodies(queue), ['b', 'd'], 'messages in the end');
  channel = await run.channel();
  await tx.select(channel);
  const confirm = (c) => c.rpc(defs.ConfirmSelect, { nowait: false }, defs.ConfirmSelectOk);
  await refused(406, 'PRECONDITION_FAILED - cannot switch from tx to confirm mode', channel, confirm, 'confirm.select in tx mode');
});

const locked = (queue) =>
  `RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '${queue}' in vhost '/'. It could be originally declared on ` +
  'another connection or the exclusive property value does not match that of the original declaration.';

scenario(13, 'exclusive_and_auto_delete', {}, async (run) => {
  const owner = await run.connect();
  const mine = await run.queue(await run.channel(owner), { exclusive: true });
  const actions = [
    (c) => c.assertQueue(mine, { exclusive: true, durable: false }),
    (c) => c.checkQueue(mine),
    (c) => c.consume(mine, () => {}),
    (c) => c.deleteQueue(mine),
  ];
  for (const action of actions) await refused(405, locked(mine), await run.channel(), action, 'exclusive queue of another connection');
  await owner.close();
  check(await run.gone('queue', mine), 'the exclusive queue outlived its connection');

  const channel = await run.channel();
  const queue = await run.queue(channel, { autoDelete: true });
  put(channel, queue, 'x');
  check(!(await run.gone('queue', queue)), 'auto-delete before any consumer');
  const first = await Inbox.open(channel, queue, { noAck: true });
  const second = await Inbox.open(await run.channel(), queue, { noAck: true });
  await first.cancel();
  check(!(await run.gone('queue', queue)), 'auto-delete with a consumer left');
  await second.cancel();
  check(await run.gone('queue', queue), 'auto-delete queue is there after its last consumer');

  const exchange = await run.exchange(channel, 'fanout', { autoDelete: true });
  const target = await run.queue(channel);
  check(!(await run.gone('exchange', exchange)), 'auto-delete exchange before any binding');
  await channel.bindQueue(target, exchange, '1');
  await channel.bindQueue(target, exchange, '2');
  await channel.unbindQueue(target, exchange, '1');
  check(!(await run.gone('exchange', exchange)), 'auto-delete exchange with a binding left');
  await channel.unbindQueue(target, exchange, '2');
  check(await run.gone('exchange', exchange), 'auto-delete exchange is there after its last binding');
});

scenario(14, 'single_active_consumer_failover', {}, async (run) => {
  const setup = await run.channel();
  const queue = await run.queue(setup, { arguments: { 'x-single-active-consumer': true } });
  const secondConnection = await run.connect();
  const first = await Inbox.open(await run.channel(), queue, { ack: true });
  const second = await Inbox.open(await run.channel(secondConnection), queue);
  const third = await Inbox.open(await run.channel(await run.connect()), queue, { ack: true });
  put(setup, queue, numbers(1, 3));
  await first.take(3);
  await quiet();
  equal([second.bodies, third.bodies], [[], []], 'messages of those who wait');
  await first.cancel();
  put(setup, queue, numbers(4, 6));
  await second.take(3);
  await quiet();
  equal([first.bodies, third.bodies], [numbers(1, 3), []], 'messages of the others after the cancel');
  run.cut(secondConnection);
  await third.take(3);
  put(setup, queue, 7);
  await third.take(4);
  equal(third.bodies, numbers(4, 7), 'messages of the third');
  equal(third.redelivered, [true, true, true, false], 'redelivered');
});

scenario(15, 'prefetch_one_fairness', {}, async (run) => {
  const channel = await run.channel();
  const queue = await run.queue(channel);
  const slow = await Inbox.open(await run.channel(await run.connect()), queue, { prefetch: 1 });
  put(channel, queue, 'first');
  await slow.take(1);
  const quick = await Inbox.open(await run.channel(await run.connect()), queue, { prefetch: 1, ack: true });
  put(channel, queue, numbers(0, 18));
  await quick.take(19);
  await quiet();
  equal(slow.bodies, ['first'], 'messages of the slow worker');
  equal(quick.bodies, numbers(0, 18), 'messages of the quick worker');
  await quick.cancel();
  put(channel, queue, 'next');
  await quiet();
  equal(slow.messages.length, 1, 'a second delivery without an ack');
  slow.channel.ack(slow.messages[0]);
  await slow.take(2);
  equal(slow.bodies, ['first', 'next'], 'messages of the slow worker in the end');
  slow.channel.ack(slow.messages[1]);
});

scenario(16, 'redelivery_order_after_consumer_dies', {}, async (run) => {
  const channel = await run.channel();
  const queue = await run.queue(channel);
  put(channel, queue, numbers(1, 20));
  await run.untilReady(queue, 20);
  const dying = await run.connect();
  const first = await Inbox.open(await run.channel(dying), queue, { prefetch: 10 });
  await first.take(10);
  first.channel.ack(first.messages[2]);
  first.channel.ack(first.messages[4]);
  await first.take(12);
  await quiet(100);
  equal(first.bodies, numbers(1, 12), 'messages of the first');
  run.cut(dying);
  await run.untilReady(queue, 18);
  const second = await Inbox.open(channel, queue, { ack: true });
  await second.take(18);
  const want = numbers(1, 20).filter((n) => n !== '3' && n !== '5');
  equal(second.bodies, want, 'messages of the second');
  equal(second.redelivered, want.map((n) => Number(n) <= 12), 'redelivered');
});

scenario(17, 'durable_survives_restart', { limit: 60 }, async (run) => {
  if (!run.options.restartCmd) throw new Skip('no --restart-cmd');
  let channel = await run.confirming();
  const queue = await run.queue(channel, { durable: true, maxLength: 1000 });
  const exchange = await run.exchange(channel, 'topic', { durable: true });
  const passing = await run.exchange(channel, 'topic');
  await channel.bindQueue(queue, exchange, 'a.*');
  const transient = await run.queue(await run.channel());
  const sent = numbers(0, 49).map((n) => confirmed(channel, exchange, 'a.b', n, { persistent: n % 2 === 0, messageId: `m${n}`, headers: { n: Number(n) } }));
  check(
    (await Promise.all(sent)).every((a) => a === 'ack'),
    'a publish was nacked',
  );
  equal((await run.ready(queue))[0], 50, 'messages before');
  await run.restart();
  channel = await run.confirming();
  await run.queue(channel, { name: queue, durable: true, maxLength: 1000 });
  await run.exchange(channel, 'topic', { name: exchange, durable: true });
  check(await run.gone('queue', transient), 'the transient queue is there');
  check(await run.gone('exchange', passing), 'the transient exchange is there');
  equal(await confirmed(channel, exchange, 'a.c', 'new', { persistent: true, mandatory: true }), 'ack', 'new');
  const messages = await run.drain(queue);
  const even = numbers(0, 49).filter((n) => n % 2 === 0);
  equal(messages.map((m) => m.content.toString()), [...even, 'new'], 'messages after');
  const old = messages.slice(0, -1);
  equal(old.map((m) => m.properties.messageId), even.map((n) => `m${n}`), 'message ids');
  equal(old.map((m) => m.properties.headers.n), even.map(Number), 'headers');
  equal([old[0].fields.exchange, old[0].fields.routingKey], [exchange, 'a.b'], 'exchange and key');
});

scenario(18, 'retry_ladder_ttl', {}, async (run) => {
  const channel = await run.channel();
  const toWait = await run.exchange(channel, 'direct');
  const toWork = await run.exchange(channel, 'direct');
  const work = await run.queue(channel, { deadLetterExchange: toWait });
  const wait = await run.queue(channel, { deadLetterExchange: toWork, messageTtl: 200 });
  await channel.bindQueue(work, toWork, 'job');
  await channel.bindQueue(wait, toWait, 'job');
  const inbox = await Inbox.open(channel, work, {
    prefetch: 1,
    onMessage: (message, self) => {
      if (self.messages.length < 3) channel.reject(message, false);
      else channel.ack(message);
    },
  });
  put(channel, 'job', 'task', { exchange: toWork });
  const [first, second, third] = await inbox.take(3);
  check(!('x-death' in first.properties.headers), 'x-death at the first delivery');
  check(second.at - first.at >= 199 && third.at - second.at >= 199, 'came before the TTL');
  equal(second.properties.headers['x-death'].length, 2, 'entries of x-death at the second delivery');
  equal(third.properties.headers['x-death'].length, 2, 'entries of x-death at the third delivery');
  checkDeath(third, 0, wait, 'expired', 2, toWait, ['job']);
  checkDeath(third, 1, work, 'rejected', 2, toWork, ['job']);
  const h = third.properties.headers;
  equal([h['x-first-death-reason'], h['x-first-death-queue'], h['x-first-death-exchange']], ['rejected', work, toWork], 'x-first-death');
  await quiet();
  equal([(await run.ready(work))[0], (await run.ready(wait))[0]], [0, 0], 'messages left');
});

scenario(19, 'retry_ladder_delay', {}, async (run) => {
  const exchange = await run.pluginExchange('x-delayed-message', { arguments: { 'x-delayed-type': 'topic' } });
  const channel = await run.channel();
  const queue = await run.queue(channel);
  await channel.bindQueue(queue, exchange, 'job.#');
  const sent = [];
  const inbox = await Inbox.open(channel, queue, {
    prefetch: 1,
    onMessage: (message) => {
      const { attempt } = message.properties.headers;
      if (attempt < 3) {
        const delay = 200 * 2 ** (attempt - 1);
        sent.push([performance.now(), delay]);
        put(channel, 'job.again', message.content, { exchange, headers: { attempt: attempt + 1, 'x-delay': delay } });
      }
      channel.ack(message);
    },
  });
  put(channel, 'job.first', 'task', { exchange, headers: { attempt: 1 } });
  await inbox.take(3);
  await quiet();
  equal(inbox.messages.map((m) => m.properties.headers.attempt), [1, 2, 3], 'attempts');
  sent.forEach(([at, delay], i) => {
    const waited = inbox.messages[i + 1].at - at;
    check(waited >= delay - 1, `came ${waited} ms after, delay ${delay} ms`);
  });
});

scenario(20, 'order_per_entity', {}, async (run) => {
  const exchange = await run.pluginExchange('x-consistent-hash', { durable: true });
  const channel = await run.confirming();
  const seen = [];
  const workers = [await run.connect(), await run.connect()];
  for (let q = 0; q < 3; q++) {
    const queue = await run.queue(channel, { arguments: { 'x-single-active-consumer': true } });
    await channel.bindQueue(queue, exchange, '1');
    for (let w = 0; w < 2; w++) {
      const onMessage = (message) => seen.push([`${q}/${w}`, message.content.toString()]);
      await Inbox.open(await run.channel(workers[w]), queue, { prefetch: 5, ack: true, onMessage });
    }
  }
  for (let n = 0; n < 10; n++) for (let entity = 0; entity < 30; entity++) put(channel, `entity-${entity}`, `${entity}:${n}`, { exchange });
  await channel.waitForConfirms();
  await until(
    () => seen.length >= 300,
    () => `300 events, have ${seen.length}`,
  );
  await quiet();
  equal(seen.length, 300, 'events');
  for (let entity = 0; entity < 30; entity++) {
    const events = seen.filter(([, body]) => body.startsWith(`${entity}:`));
    equal(new Set(events.map(([who]) => who)).size, 1, `consumers of entity ${entity}`);
    equal(events.map(([, body]) => body), numbers(0, 9).map((n) => `${entity}:${n}`), `order of entity ${entity}`);
  }
});

scenario(21, 'consumer_timeout', { braidOnly: true }, async (run) => {
  const setup = await run.channel();
  const queue = await run.queue(setup, { arguments: { 'x-consumer-timeout': 1000 } });
  const stuck = await Inbox.open(await run.channel(await run.connect()), queue, { prefetch: 1 });
  put(setup, queue, 'held');
  await stuck.take(1);
  const other = await Inbox.open(await run.channel(await run.connect()), queue, { ack: true });
  await other.take(1);
  equal([stuck.redelivered, other.bodies, other.redelivered], [[false], ['held'], [true]], 'what the workers get');
  check(other.messages[0].at - stuck.messages[0].at >= 900, 'came before the timeout');
  await until(() => stuck.cancelled, 'basic.cancel');
  await stuck.channel.checkQueue(queue);
});

scenario(22, 'errors_close_channel_not_connection', {}, async (run) => {
  const witness = await run.channel();
  const queue = await run.queue(witness, { durable: true });
  const exchange = await run.exchange(witness, 'direct');
  const none = run.name('none');
  const lockedQueue = await run.queue(await run.channel(await run.connect()), { exclusive: true });
  const consumed = await run.queue(witness);
  await Inbox.open(await run.channel(), consumed, { exclusive: true });
  const filled = await run.queue(witness);
  put(witness, filled, 'x');
  await run.untilReady(filled, 1);
  const noQueue = `NOT_FOUND - no queue '${none}' in vhost '/'`;
  const noExchange = `NOT_FOUND - no exchange '${none}' in vhost '/'`;
  const bad = (text) => `PRECONDITION_FAILED - ${text}`;
  const ten = { 'x-max-length': { '!': 'int', value: 10 } };
  const cases = [
    [404, noQueue, (c) => c.checkQueue(none)],
    [404, noExchange, (c) => c.checkExchange(none)],
    [404, noExchange, (c) => put(c, queue, 'x', { exchange: none })],
    [404, noQueue, (c) => c.consume(none, () => {})],
    [404, noExchange, (c) => c.bindQueue(queue, none, 'k')],
    [406, bad(`inequivalent arg 'durable' for queue '${queue}' in vhost '/': received 'false' but current is 'true'`), (c) => c.assertQueue(queue, { durable: false })],
    [
      406,
      bad(`inequivalent arg 'x-max-length' for queue '${queue}' in vhost '/': received the value '10' of type 'signedint' but current is none`),
      (c) => c.assertQueue(queue, { durable: true, arguments: ten }),
    ],
    [
      406,
      bad(`inequivalent arg 'type' for exchange '${exchange}' in vhost '/': received 'fanout' but current is 'direct'`),
      (c) => c.assertExchange(exchange, 'fanout', { durable: false }),
    ],
    [
      406,
      bad(`invalid arg 'x-message-ttl' for queue '${none}' in vhost '/': {value_negative,-10}`),
      (c) => c.assertQueue(none, { durable: false, arguments: { 'x-message-ttl': -10 } }),
    ],
    [406, bad('unknown delivery tag 5'), (c) => c.ack({ fields: { deliveryTag: 5 } })],
    [406, bad(`queue '${consumed}' in vhost '/' in use`), (c) => c.deleteQueue(consumed, { ifUnused: true })],
    [406, bad(`queue '${filled}' in vhost '/' not empty`), (c) => c.deleteQueue(filled, { ifEmpty: true })],
    [406, bad("invalid expiration 'foo': no_integer"), (c) => put(c, queue, 'x', { expiration: 'foo' })],
    [403, `ACCESS_REFUSED - queue name 'amq.${none}' contains reserved prefix 'amq.*'`, (c) => c.assertQueue(`amq.${none}`, { durable: false })],
    [403, 'ACCESS_REFUSED - operation not permitted on the default exchange', (c) => c.bindQueue(queue, '', 'k')],
    [403, `ACCESS_REFUSED - queue '${consumed}' in vhost '/' in exclusive use`, (c) => c.consume(consumed, () => {})],
    [405, locked(lockedQueue), (c) => c.assertQueue(lockedQueue, { exclusive: true, durable: false })],
  ];
  if (run.braid) cases.push([406, bad("unknown exchange type 'x-nope'"), (c) => c.assertExchange(none, 'x-nope', { durable: false })]);
  for (const [i, [code, text, action]] of cases.entries()) await refused(code, text, await run.channel(), action, `case ${i} (${text.slice(0, 60)})`);
  check(!run.connection.gone && run.connection.failures.length === 0, 'the connection is closed');
  // class and method of what failed
  const channel = await run.channel();
  await channel.checkQueue(none).catch(() => {});
  equal([channel.failure.classId, channel.failure.methodId], [50, 10], 'class and method of the failing method');
  put(witness, queue, 'fine');
  await run.untilReady(queue, 1);
});

scenario(23, 'basic_get_and_counts', {}, async (run) => {
  const channel = await run.channel();
  const queue = await run.queue(channel);
  equal(await channel.get(queue), false, 'get of an empty queue');
  put(channel, queue, ['a', 'b', 'c', 'd']);
  await run.untilReady(queue, 4);
  const a = await channel.get(queue);
  const f = a.fields;
  equal([a.content.toString(), f.messageCount, f.redelivered, f.exchange, f.routingKey], ['a', 3, false, '', queue], 'first get');
  equal(await run.ready(queue), [3, 0], 'ready and consumers with one unacked');
  const b = await channel.get(queue, { noAck: true });
  equal([b.content.toString(), b.fields.messageCount], ['b', 2], 'second get');
  equal(await channel.assertQueue(queue, { durable: false }), { queue, messageCount: 2, consumerCount: 0 }, 'declare-ok');
  equal((await channel.purgeQueue(queue)).messageCount, 2, 'purge-ok');
  put(channel, queue, 'e');
  await run.untilReady(queue, 1);
  channel.nack(a, false, true);
  await run.untilReady(queue, 2);
  const inbox = await Inbox.open(await run.channel(), queue, { prefetch: 1 });
  await inbox.take(1);
  equal([inbox.bodies, inbox.redelivered], [['a'], [true]], 'the message requeued');
  equal(await run.ready(queue), [1, 1], 'ready and consumers with a consumer');
  equal((await channel.deleteQueue(queue)).messageCount, 1, 'delete-ok');
  equal((await channel.deleteQueue(queue)).messageCount, 0, 'delete-ok of a missing queue');
  await channel.deleteExchange(run.name('none'));
});

scenario(24, 'alternate_exchange', {}, async (run) => {
  const channel = await run.confirming();
  const alternate = await run.exchange(channel, 'direct');
  const exchange = await run.exchange(channel, 'direct', { alternateExchange: alternate });
  const known = await run.queue(channel);
  const rest = await run.queue(channel);
  await channel.bindQueue(known, exchange, 'known');
  await channel.bindQueue(rest, alternate, 'unknown');
  const returned = [];
  channel.on('return', (m) => returned.push([m.content.toString(), m.fields.exchange, m.fields.routingKey]));
  for (const [key, body] of [['known', '1'], ['unknown', '2'], ['neither', '3']]) {
    equal(await confirmed(channel, exchange, key, body, { mandatory: true }), 'ack', key);
  }
  equal(returned, [['3', exchange, 'neither']], 'returned');
  equal(await run.drainBodies(known), ['1'], 'main queue');
  const others = (await run.drain(rest)).map((m) => [m.content.toString(), m.fields.exchange, m.fields.routingKey]);
  equal(others, [['2', exchange, 'unknown']], 'queue of the alternate exchange');
});

scenario(25, 'exchange_to_exchange', {}, async (run) => {
  const channel = await run.confirming();
  const source = await run.exchange(channel, 'topic');
  const middle = await run.exchange(channel, 'fanout');
  const one = await run.queue(channel);
  const both = await run.queue(channel);
  await channel.bindExchange(middle, source, 'a.#');
  await channel.bindExchange(source, middle, '');
  await channel.bindQueue(one, middle, '');
  await channel.bindQueue(both, middle, '');
  await channel.bindQueue(both, source, 'a.b');
  await confirmed(channel, source, 'a.b', '1');
  await confirmed(channel, source, 'b', '2');
  await confirmed(channel, middle, 'b', '3');
  await confirmed(channel, middle, 'a.b', '4');
  equal(await run.drainBodies(one), ['1', '3', '4'], 'queue at the middle');
  const messages = (await run.drain(both)).map((m) => [m.content.toString(), m.fields.exchange]);
  equal(messages, [['1', source], ['3', middle], ['4', middle]], 'queue at both');
  await channel.unbindExchange(middle, source, 'a.#');
  await confirmed(channel, source, 'a.c', '5');
  await confirmed(channel, source, 'a.b', '6');
  equal(await run.drainBodies(one), [], 'queue at the middle after unbind');
  equal(await run.drainBodies(both), ['6'], 'queue at both after unbind');
});

scenario(26, 'max_length_overflow', {}, async (run) => {
  const channel = await run.confirming();
  const [dlx, letters] = await deadLetters(run, channel);
  const fill = async (options, bodies) => {
    const queue = await run.queue(channel, { deadLetterExchange: dlx, ...options });
    const nacked = [];
    for (const body of bodies) if ((await confirmed(channel, '', queue, body)) === 'nack') nacked.push(body);
    return [queue, nacked, await run.drainBodies(queue)];
  };
  const five = numbers(1, 5);
  let [queue, nacked, kept] = await fill({ maxLength: 3 }, five);
  equal([nacked, kept], [[], ['3', '4', '5']], 'drop-head');
  await letters.take(2);
  equal(letters.bodies, ['1', '2'], 'dead letters of drop-head');
  checkDeath(letters.messages[0], 0, queue, 'maxlen', 1, '', [queue]);
  [queue, nacked, kept] = await fill({ maxLength: 3, overflow: 'reject-publish', arguments: { 'x-overflow': 'reject-publish' } }, five);
  equal([nacked, kept], [['4', '5'], ['1', '2', '3']], 'reject-publish');
  await quiet();
  equal(letters.messages.length, 2, 'dead letters of reject-publish');
  [queue, nacked, kept] = await fill({ maxLength: 3, arguments: { 'x-overflow': 'reject-publish-dlx' } }, five);
  equal([nacked, kept], [['4', '5'], ['1', '2', '3']], 'reject-publish-dlx');
  await letters.take(4);
  equal(letters.bodies.slice(2), ['4', '5'], 'dead letters of reject-publish-dlx');
  checkDeath(letters.messages[2], 0, queue, 'maxlen', 1, '', [queue]);
  [queue, nacked, kept] = await fill({ arguments: { 'x-max-length-bytes': 10 } }, ['aaaa', 'bbbb', 'cccc']);
  equal([nacked, kept], [[], ['bbbb', 'cccc']], 'x-max-length-bytes');
});

scenario(27, 'large_messages', {}, async (run) => {
  const channel = await run.confirming();
  const queue = await run.queue(channel);
  const bodies = [0, 1, 131063, 131064, 131065, 2 * 131064, 2 * 131064 + 1, 4 * 1024 * 1024].map((size) => randomBytes(size));
  const inbox = await Inbox.open(await run.channel(), queue, { ack: true });
  for (const body of bodies) await confirmed(channel, '', queue, body, { persistent: true });
  await inbox.take(bodies.length);
  bodies.forEach((body, i) => {
    const { content } = inbox.messages[i];
    check(body.equals(content), `body of ${body.length} bytes is another, ${content.length} bytes`);
  });
  await inbox.cancel();
  await confirmed(channel, '', queue, bodies.at(-1));
  check(bodies.at(-1).equals((await run.getSoon(channel, queue)).content), 'body by get is another');
});

scenario(28, 'properties_and_header_types_round_trip', {}, async (run) => {
  const channel = await run.channel();
  const queue = await run.queue(channel, { durable: true });
  const typed = (type, value) => ({ '!': type, value });
  // what is sent, and how amqplib shows it where that is something else
  const fields = {
    yes: [true], no: [false], int8: [typed('int8', -128), -128], uint8: [typed('uint8', 255), 255],
    int16: [typed('int16', -32768), -32768], uint16: [typed('uint16', 65535), 65535],
    int32: [typed('int32', -(2 ** 31)), -(2 ** 31)], uint32: [typed('uint32', 2 ** 32 - 1), 2 ** 32 - 1],
    int64: [typed('int64', -(2 ** 53) + 1), -(2 ** 53) + 1], guessed: [300], large: [2 ** 40],
    float: [typed('float', 1.5), 1.5], double: [3.14159], decimal: [typed('decimal', { places: 2, digits: 314 })],
    time: [typed('timestamp', 1767323045)], string: ['grün'], empty: [''], long: ['x'.repeat(5000)],
    bytes: [Buffer.from([0, 255, 254])], void: [null], table: [{ a: 1, deeper: { b: [1, 'two', { c: null }] }, none: {} }],
    array: [[1, -1, 's', true, [2, [3]], { k: 'v' }, null, 1.5]], nothing: [[]],
  }; // biome-ignore format
  const headers = Object.fromEntries(Object.entries(fields).map(([name, [send]]) => [name, send]));
  const shown = Object.fromEntries(Object.entries(fields).map(([name, values]) => [name, values.at(-1)]));
  const properties = {
    contentType: 'text/plain', contentEncoding: 'utf-8', deliveryMode: 2, priority: 7, correlationId: 'corr', replyTo: 'somewhere',
    expiration: '600000', messageId: 'm'.repeat(255), timestamp: 1767323045, type: 'kind', userId: 'guest', appId: 'app',
  };
  put(channel, queue, 'x', { ...properties, headers });
  put(channel, queue, 'bare');
  const full = await run.getSoon(channel, queue);
  const bare = await run.getSoon(channel, queue);
  for (const [name, value] of Object.entries(properties)) equal(full.properties[name], value, name);
  equal(Object.keys(full.properties.headers), Object.keys(headers), 'names and order of the headers');
  for (const [name, value] of Object.entries(shown)) equal(full.properties.headers[name], value, `header ${name}`);
  for (const name of Object.keys(properties)) if (name !== 'deliveryMode') equal(bare.properties[name], undefined, `${name} of the bare message`);
});

scenario(29, 'many_channels', {}, async (run) => {
  const all = [];
  for (let i = 0; i < 200; i++) {
    const channel = await run.channel();
    const { queue } = await channel.assertQueue(run.name('q'), { exclusive: true, durable: false });
    all.push({ channel, queue, inbox: await Inbox.open(channel, queue, { ack: true }) });
  }
  all.forEach(({ channel }, i) => put(channel, all[(i + 7) % 200].queue, i));
  for (let i = 0; i < 200; i++) {
    const { inbox } = all[(i + 7) % 200];
    await inbox.take(1);
    equal(inbox.bodies, [String(i)], `messages of channel ${i}`);
  }
  const first = await run.channel();
  const { ch } = first;
  await first.close();
  for (let i = 0; i < 50; i++) {
    const channel = await run.channel();
    equal(channel.ch, ch, 'number of the channel');
    const { queue } = await channel.assertQueue('', { exclusive: true, autoDelete: true });
    put(channel, queue, 'x');
    await channel.close();
  }
});

scenario(30, 'quorum_queue_delivery_limit', {}, async (run) => {
  const channel = await run.channel();
  const [dlx, letters] = await deadLetters(run, channel);
  const queue = await run.queue(channel, { durable: true, deadLetterExchange: dlx, arguments: { 'x-queue-type': 'quorum', 'x-delivery-limit': 2 } });
  const counts = [];
  await Inbox.open(channel, queue, {
    prefetch: 1,
    onMessage: (message) => {
      counts.push([message.properties.headers?.['x-delivery-count'] ?? 0, message.fields.redelivered]);
      channel.reject(message, true);
    },
  });
  put(channel, queue, 'poison', { persistent: true });
  await letters.take(1, 'dead letters');
  await quiet();
  equal(counts, [[0, false], [1, true], [2, true]], 'delivery counts and redelivered');
  checkDeath(letters.messages[0], 0, queue, 'delivery_limit', 1, '', [queue]);
  await run.untilReady(queue, 0);
});

scenario(31, 'consumer_priority_and_cancel', {}, async (run) => {
  const setup = await run.channel();
  const queue = await run.queue(setup);
  const low = await Inbox.open(await run.channel(), queue, { prefetch: 100 });
  const high = await Inbox.open(await run.channel(), queue, { prefetch: 5, priority: 10 });
  put(setup, queue, numbers(0, 7));
  await high.take(5);
  await low.take(3);
  await quiet();
  equal([high.bodies, low.bodies], [numbers(0, 4), numbers(5, 7)], 'high and low');
  high.channel.ackAll();
  await run.ready(queue);
  await quiet(100);
  put(setup, queue, ['8', '9']);
  await high.take(7);
  await high.cancel();
  put(setup, queue, ['10', '11']);
  await low.take(5);
  equal([high.bodies.slice(5), low.bodies.slice(3)], [['8', '9'], ['10', '11']], 'high and low after the ack and the cancel');
  await setup.deleteQueue(queue);
  await until(() => low.cancelled, 'basic.cancel');
  check(!high.cancelled, 'who cancelled itself hears nothing');
  await low.channel.assertQueue('', { exclusive: true });
});

scenario(32, 'nack_multiple_and_recover', {}, async (run) => {
  const channel = await run.channel();
  const queue = await run.queue(channel);
  put(channel, queue, numbers(1, 5));
  await run.untilReady(queue, 5);
  const getAll = async (count) => {
    const messages = [];
    for (let i = 0; i < count; i++) messages.push(await run.getSoon(channel, queue, { noAck: false }));
    return [messages, messages.map((m) => [m.content.toString(), m.fields.redelivered])];
  };
  let [messages, seen] = await getAll(5);
  equal(seen, numbers(1, 5).map((n) => [n, false]), 'first time');
  equal(messages.map((m) => m.fields.deliveryTag), [1, 2, 3, 4, 5], 'delivery tags');
  channel.nack(messages[4], true, true);
  [messages, seen] = await getAll(5);
  equal(seen, numbers(1, 5).map((n) => [n, true]), 'after nack multiple');
  channel.ack(messages[2], true);
  await channel.recover();
  await run.untilReady(queue, 2);
  [messages, seen] = await getAll(2);
  equal(seen, [['4', true], ['5', true]], 'after recover');
  channel.ackAll();
  await channel.close();
  await quiet(100);
  equal((await run.ready(queue))[0], 0, 'messages left');
});

scenario(33, 'queue_expires', {}, async (run) => {
  const channel = await run.channel();
  const [renewed, used, unused] = [await run.queue(channel, { expires: 1000 }), await run.queue(channel, { expires: 1000 }), await run.queue(channel, { expires: 1000 })];
  const inbox = await Inbox.open(channel, used, { noAck: true });
  put(channel, renewed, 'stays');
  const began = performance.now();
  let last = began;
  while (performance.now() - began < 1600) {
    await quiet(250);
    const { messageCount } = await channel.assertQueue(renewed, { durable: false, expires: 1000 });
    check(performance.now() - last < 900, 'this machine is too slow to say');
    last = performance.now();
    equal(messageCount, 1, 'messages of the queue that is redeclared');
  }
  check(await run.gone('queue', unused), 'the unused queue is there');
  put(channel, used, 'works');
  await inbox.take(1);
  let gone = false;
  for (let i = 0; i < 3 && !gone; i++) {
    await quiet(2000);
    gone = await run.gone('queue', renewed);
  }
  check(gone, 'the renewed queue stays for ever');
  check(!(await run.gone('queue', used)), 'the queue with a consumer is gone');
});

scenario(34, 'unacked_requeued_on_close', {}, async (run) => {
  const setup = await run.channel();
  const queue = await run.queue(setup);
  const auto = await run.queue(setup);
  put(setup, queue, numbers(0, 5));
  put(setup, auto, numbers(0, 2));
  await run.untilReady(queue, 6);
  const connection = await run.connect();
  const first = await Inbox.open(await run.channel(connection), queue, { prefetch: 4 });
  const taken = await Inbox.open(await run.channel(connection), auto, { noAck: true });
  await first.take(4);
  await taken.take(3);
  await first.channel.close();
  await run.untilReady(queue, 6);
  const second = await Inbox.open(await run.channel(connection), queue, { prefetch: 3 });
  await second.take(3);
  equal([second.bodies, second.redelivered], [['0', '1', '2'], [true, true, true]], 'after the channel is closed');
  second.channel.ack(second.messages[0]);
  await second.take(4);
  await connection.close();
  await run.untilReady(queue, 5);
  const messages = (await run.drain(queue)).map((m) => [m.content.toString(), m.fields.redelivered]);
  equal(messages, [['1', true], ['2', true], ['3', true], ['4', false], ['5', false]], 'after the connection is closed');
  equal((await run.ready(auto))[0], 0, 'auto-acked messages');
});

main().then(
  (code) => process.exit(code),
  (error) => {
    console.error(error);
    process.exit(2);
  },
);
