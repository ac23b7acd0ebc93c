// What every scenario needs: connections, fresh names, waiting for conditions, cleaning up, one line of output each.
'use strict';

const { execSync } = require('node:child_process');
const { randomBytes } = require('node:crypto');
const { isDeepStrictEqual, inspect } = require('node:util');
const amqp = require('amqplib');

const scenarios = [];
function scenario(number, name, options, run) {
  scenarios.push({ number, name, braidOnly: false, limit: 20, ...options, run });
}

class Skip extends Error {}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function check(condition, text) {
  if (!condition) throw new Error(text);
}

function short(value) {
  const text = inspect(value, { depth: 6, breakLength: Infinity, maxStringLength: 200, maxArrayLength: 40 });
  return text.length <= 500 ? text : `${text.slice(0, 500)}...`;
}

function equal(got, want, what) {
  if (!isDeepStrictEqual(got, want)) throw new Error(`${what}: got ${short(got)}, want ${short(want)}`);
}

async function until(condition, what, limit = 12000) {
  const end = Date.now() + limit;
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`waited ${limit} ms for ${typeof what === 'function' ? what() : what}`);
    await sleep(5);
  }
}

// Long enough for something wrong to show itself.
const quiet = (ms = 250) => sleep(ms);

// The code and the text with which the server closed the channel.
function closing(error) {
  const found = /with message "([\s\S]*)"$/.exec(error.message);
  return found ? [error.code, found[1]] : [error.code, error.message];
}

// The action must close this channel with this code and text.
async function refused(code, text, channel, action, what) {
  let error;
  try {
    await action(channel);
    await until(() => channel.failure, `${what}: was not refused`, 5000);
  } catch (caught) {
    error = caught;
  }
  error = channel.failure ?? error;
  equal(closing(error), [code, text], what);
}

// A consumer that keeps what it gets.
class Inbox {
  constructor(channel) {
    this.channel = channel;
    this.messages = [];
    this.cancelled = false;
  }

  static async open(channel, queue, { prefetch, ack = false, noAck = false, onMessage, ...options } = {}) {
    const inbox = new Inbox(channel);
    if (prefetch !== undefined) await channel.prefetch(prefetch);
    const ok = await channel.consume(
      queue,
      (message) => {
        if (message === null) {
          inbox.cancelled = true;
          return;
        }
        message.at = performance.now();
        inbox.messages.push(message);
        if (onMessage) onMessage(message, inbox);
        if (ack) channel.ack(message);
      },
      { noAck, ...options },
    );
    inbox.tag = ok.consumerTag;
    return inbox;
  }

  get bodies() {
    return this.messages.map((m) => m.content.toString());
  }

  get redelivered() {
    return this.messages.map((m) => m.fields.redelivered);
  }

  async take(count, what = 'messages') {
    await until(
      () => this.messages.length >= count,
      () => `${count} ${what}, have ${short(this.bodies)}`,
    );
    return this.messages;
  }

  cancel() {
    return this.channel.cancel(this.tag);
  }
}

// One run of one scenario.
class Run {
  constructor(options, peer) {
    this.options = options;
    this.braid = peer === 'braid';
    this.connections = [];
    this.queues = [];
    this.exchanges = [];
  }

  async connect() {
    const connection = await amqp.connect(this.options.uri);
    connection.failures = [];
    connection.on('error', (error) => connection.failures.push(error));
    connection.on('close', () => {
      connection.gone = true;
    });
    this.connections.push(connection);
    return connection;
  }

  async channel(connection = this.connection) {
    return this.#watch(await connection.createChannel());
  }

  async confirming(connection = this.connection) {
    return this.#watch(await connection.createConfirmChannel());
  }

  #watch(channel) {
    channel.on('error', (error) => {
      channel.failure = error;
    });
    return channel;
  }

  name(kind) {
    return `interop-amqplib-${kind}-${randomBytes(6).toString('hex')}`;
  }

  async queue(channel, options = {}) {
    const { name = this.name('q'), ...rest } = options;
    const { queue } = await channel.assertQueue(name, { durable: false, ...rest });
    this.queues.push(queue);
    return queue;
  }

  async exchange(channel, kind, options = {}) {
    const { name = this.name('x'), ...rest } = options;
    this.exchanges.push(name);
    await channel.assertExchange(name, kind, { durable: false, ...rest });
    return name;
  }

  // An exchange of a type that RabbitMQ has by a plugin only.
  async pluginExchange(kind, options) {
    if (this.braid) return this.exchange(await this.channel(), kind, options);
    try {
      return await this.exchange(await this.channel(await this.connect()), kind, options);
    } catch {
      throw new Skip(`peer has no exchange type ${kind}`);
    }
  }

  // Messages ready and consumers, as a passive declare says.
  async ready(queue) {
    const channel = await this.channel();
    const ok = await channel.checkQueue(queue);
    await channel.close();
    return [ok.messageCount, ok.consumerCount];
  }

  async untilReady(queue, count) {
    let last;
    await until(
      async () => {
        last = (await this.ready(queue))[0];
        return last === count;
      },
      () => `${count} ready in queue, has ${last}`,
    );
  }

  async getSoon(channel, queue, options = { noAck: true }) {
    let message;
    await until(async () => {
      message = await channel.get(queue, options);
      return message;
    }, 'a message to get');
    return message;
  }

  async drain(queue) {
    const channel = await this.channel();
    const messages = [];
    for (let m = await channel.get(queue, { noAck: true }); m; m = await channel.get(queue, { noAck: true })) messages.push(m);
    await channel.close();
    return messages;
  }

  async drainBodies(queue) {
    return (await this.drain(queue)).map((m) => m.content.toString());
  }

  async gone(kind, name) {
    const channel = await this.channel();
    try {
      await (kind === 'queue' ? channel.checkQueue(name) : channel.checkExchange(name));
    } catch (error) {
      equal(error.code, 404, `passive declare of ${kind}`);
      return true;
    }
    await channel.close();
    return false;
  }

  // The connection goes without a word.
  cut(connection) {
    connection.gone = true;
    connection.connection.stream.destroy();
  }

  async restart() {
    execSync(this.options.restartCmd, { stdio: ['ignore', 2, 2], timeout: 55000 });
    const end = Date.now() + 20000;
    for (;;) {
      try {
        this.connection = await this.connect();
        return;
      } catch (error) {
        if (Date.now() > end) throw error;
        await sleep(200);
      }
    }
  }

  async clean() {
    for (const connection of this.connections) {
      try {
        if (!connection.gone) await connection.close();
      } catch {
        // it may be anything that the scenario left behind
      }
    }
    if (this.queues.length + this.exchanges.length === 0) return;
    const connection = await amqp.connect(this.options.uri);
    const attempt = async (action) => {
      const channel = this.#watch(await connection.createChannel());
      try {
        await action(channel);
        await channel.close();
      } catch {
        // gone already
      }
    };
    for (const name of this.queues) await attempt((c) => c.deleteQueue(name));
    for (const name of this.exchanges) await attempt((c) => c.deleteExchange(name));
    await connection.close();
  }
}

function within(promise, ms, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(what)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

function parse(argv) {
  const options = { uri: process.env.BRAID_AMQP_URI ?? 'amqp://guest:guest@127.0.0.1:5672/', only: [], list: false, peer: 'auto' };
  for (let i = 0; i < argv.length; i++) {
    const [flag, inline] = argv[i].split(/=(.*)/s);
    const value = () => inline ?? argv[++i];
    if (flag === '--uri') options.uri = value();
    else if (flag === '--only') options.only.push(...value().split(','));
    else if (flag === '--list') options.list = true;
    else if (flag === '--peer') options.peer = value();
    else if (flag === '--restart-cmd') options.restartCmd = value();
    else throw new Error(`unknown flag ${flag}`);
  }
  return options;
}

async function main() {
  const options = parse(process.argv.slice(2));
  const label = (s) => `${String(s.number).padStart(2, '0')} ${s.name}`;
  const chosen = scenarios.filter((s) => options.only.length === 0 || options.only.some((o) => o === s.name || Number(o) === s.number));
  if (options.list) {
    for (const s of chosen) console.log(label(s));
    return 0;
  }
  if (chosen.length === 0) {
    console.error('no such scenario');
    return 2;
  }
  let { peer } = options;
  if (peer === 'auto') {
    const connection = await amqp.connect(options.uri);
    peer = 'braid' in connection.connection.serverProperties ? 'braid' : 'rabbitmq';
    await connection.close();
  }
  let failed = false;
  for (const s of chosen) {
    if (s.braidOnly && peer === 'rabbitmq') {
      console.log(`skip ${label(s)}: Braid only`);
      continue;
    }
    const run = new Run(options, peer);
    const began = Date.now();
    let line = `ok ${label(s)}`;
    const bad = (error, when = '') => {
      console.error(error);
      failed = true;
      line = `not ok ${label(s)}: ${when}${error.message}`.replaceAll('\n', ' ');
    };
    try {
      const all = (async () => {
        run.connection = await run.connect();
        await s.run(run);
      })();
      all.catch(() => {}); // when it is late, nobody else hears it
      await within(all, s.limit * 1000, 'took longer than its limit');
    } catch (error) {
      if (error instanceof Skip) line = `skip ${label(s)}: ${error.message}`;
      else bad(error);
    }
    try {
      await within(run.clean(), 10000, 'took longer than its limit');
    } catch (error) {
      if (line.startsWith('ok')) bad(error, 'while cleaning up: ');
    }
    console.log(line);
    console.error(`   ${(Date.now() - began) / 1000} s`);
  }
  return failed ? 1 : 0;
}

module.exports = { scenario, main, Run, Inbox, Skip, check, equal, until, quiet, sleep, refused, closing };
