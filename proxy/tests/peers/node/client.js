// A client on Node's http or http2 module that reads the commands of proxy/tests/peers/matrix.rs.
//
// usage: node client.js h1|h2
'use strict';
const crypto = require('node:crypto');
const http = require('node:http');
const http2 = require('node:http2');
const net = require('node:net');
const readline = require('node:readline');

const version = process.argv[2];
const PART = Buffer.from('0123456789abcdef'.repeat(4096));
const agent = new http.Agent({ keepAlive: true });
const sessions = new Map();

function session(address) {
  const known = sessions.get(address);
  if (known && !known.closed && !known.destroyed) return known;
  const made = http2.connect(`http://${address}`);
  made.on('error', () => sessions.delete(address));
  made.on('goaway', () => sessions.delete(address));
  sessions.set(address, made);
  return made;
}

// Starts a request with either module. `on` has the callbacks.
function begin(address, method, path, headers, on) {
  if (version === 'h1') {
    const [host, port] = address.split(':');
    const request = http.request({ agent, host, port, method, path, headers });
    request.on('information', ({ statusCode }) => on.interim(statusCode));
    // 100 has its own event.
    request.on('continue', () => on.continue());
    request.on('response', (response) => on.response(response.statusCode, response, () => response.trailers));
    request.flushHeaders();
    return { out: request, cancel: () => request.destroy() };
  }
  const stream = session(address).request({ ':method': method, ':path': path, ...headers }, { endStream: method === 'GET', waitForTrailers: 'trailer' in headers });
  let trailers = {};
  stream.on('headers', ({ ':status': status }) => on.interim(status));
  stream.on('continue', () => on.continue());
  stream.on('trailers', (fields) => { trailers = fields; });
  stream.on('response', ({ ':status': status }) => on.response(status, stream, () => trailers));
  return { out: stream, cancel: () => stream.destroy(new Error('left')) };
}

function write(out, count, done) {
  if (out.destroyed || out.writableEnded) return;
  if (count === 0) return done();
  const part = PART.subarray(0, Math.min(count, PART.length));
  const next = () => write(out, count - part.length, done);
  if (out.write(part)) setImmediate(next);
  else out.once('drain', next);
}

function exchange(address, id, method, path, size, options) {
  return new Promise((resolve) => {
    const result = { status: 0, length: 0, sum: '', text: '', trailer: '', interim: [], error: '' };
    const timer = setTimeout(() => done('timeout'), 6000);
    function done(error) {
      clearTimeout(timer);
      if (error && !result.error) result.error = String(error);
      resolve(result);
      if (error) cancel();
    }
    const has = (option) => options.includes(option);
    const headers = { 'x-id': id };
    if (method === 'POST' && has('length')) headers['content-length'] = size;
    if (has('expect')) headers.expect = '100-continue';
    if (has('trailers')) headers.trailer = 'x-check';
    let answered = () => {};
    const on = {
      interim: (status) => { if (status !== 100) result.interim.push(status); },
      continue: () => { result.interim.push(100); send(); },
      response: (status, body, trailers) => {
        result.status = status;
        const hash = crypto.createHash('sha256');
        let text = '';
        body.on('data', (chunk) => {
          hash.update(chunk);
          result.length += chunk.length;
          if (has('leave')) { result.error = 'left'; return done('left'); }
          if (text.length < 200) text += chunk.toString('latin1');
          if (result.length === 5) answered();
        });
        body.on('aborted', () => done('aborted'));
        body.on('end', () => {
          if (version === 'h1' ? !body.complete : body.rstCode !== 0) return done('aborted');
          result.sum = hash.digest('hex').slice(0, 16);
          if (result.length <= 200) result.text = text;
          result.trailer = trailers()['x-check'] ?? '';
          done();
        });
      },
    };
    const { out, cancel } = begin(address, method, path, headers, on);
    out.on('error', (error) => done(error.message));
    out.on('close', () => {
      if (version === 'h2' && out.rstCode !== 0) done(`reset ${out.rstCode}`);
      else done(result.status ? '' : 'closed');
    });
    if (version === 'h2') out.on('aborted', () => done('aborted'));
    if (version === 'h2') out.on('wantTrailers', () => out.sendTrailers({ 'x-check': 'up' }));
    const leave = (after) => setTimeout(() => { result.error = 'left'; done('left'); }, after);
    let isSent = false;
    function send() {
      if (isSent) return;
      isSent = true;
      if (method === 'GET') return void out.end();
      if (has('leave-head')) return void leave(50);
      if (has('leave-body')) return write(out, size / 2, () => leave(50));
      if (has('leave-end')) return write(out, size, () => leave(50));
      const end = () => { if (version === 'h1' && has('trailers')) out.addTrailers({ 'x-check': 'up' }); out.end(); };
      if (!has('pause')) return write(out, size, end);
      // Node emits no 'drain' on an HTTP/1.1 request that was answered.
      answered = () => { out.write(Buffer.alloc(size - 65536, PART)); end(); };
      write(out, 65536, () => {});
    }
    if (!has('expect')) send();
  });
}

function raw(address, id, kind) {
  return new Promise((resolve) => {
    const [host, port] = address.split(':');
    const socket = net.connect({ host, port, allowHalfOpen: true });
    let said = '';
    socket.on('data', (chunk) => { said += chunk.toString('latin1'); });
    socket.on('error', (error) => resolve({ status: 0, error: error.message }));
    socket.setTimeout(6000, () => { socket.destroy(); resolve({ status: 0, error: 'timeout' }); });
    socket.on('end', () => {
      socket.end();
      const [head, framed] = said.split('\r\n\r\n');
      // These responses have at most one chunk.
      const body = /transfer-encoding: chunked/i.test(head) ? framed?.split('\r\n')[1] : framed;
      resolve({ status: Number(head.split(' ')[1] ?? 0), text: body, length: body?.length ?? 0, error: said ? '' : 'closed' });
    });
    socket.end(`GET /plain HTTP/1.1\r\nhost: app\r\nx-id: ${id}\r\nconnection: close\r\n\r\n`);
  });
}

async function command([verb, address, id, path, size, options]) {
  switch (verb) {
    case 'get': return exchange(address, id, 'GET', path, 0, []);
    case 'leave': return exchange(address, id, 'GET', path, 0, ['leave']);
    case 'post': return exchange(address, id, 'POST', path, Number(size), options.split(','));
    case 'raw': return raw(address, id, path);
    default: return { error: 'no such command' };
  }
}

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await command(line.split(' '))));
  }
  process.exit(0);
})();
