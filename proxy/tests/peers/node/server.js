// A server on Node's http or http2 module, with the same paths as the Go peer's server.
//
// usage: node server.js PORT CONTROL-PORT h1|h2
'use strict';
const crypto = require('node:crypto');
const http = require('node:http');
const http2 = require('node:http2');

const [port, control, version] = process.argv.slice(2);
const PART = Buffer.from('0123456789abcdef'.repeat(4096));
const seen = new Map();
let open = 0;

function pattern(out, count, done) {
  if (out.destroyed) return;
  if (count === 0) return done();
  const part = PART.subarray(0, Math.min(count, PART.length));
  const next = () => pattern(out, count - part.length, done);
  if (out.write(part)) setImmediate(next);
  else out.once('drain', next);
}

// Reads a body. Calls `done` with its length, checksum and trailer if it was complete.
function read(request, tell, done) {
  const hash = crypto.createHash('sha256');
  let count = 0;
  let ended = false;
  request.on('data', (chunk) => { hash.update(chunk); count += chunk.length; });
  request.on('end', () => {
    // A reset stream emits 'end' too: before the response with `aborted` set, after it with an error code.
    if (request.aborted || (version === 'h1' ? !request.complete : request.stream.rstCode !== 0)) return;
    ended = true;
    const trailer = request.trailers['x-check'];
    const told = `${count} ${hash.digest('hex').slice(0, 16)}${trailer ? ` ${trailer}` : ''}`;
    tell(`complete ${told}`);
    done(told);
  });
  request.on('close', () => { if (!ended) tell(`cut ${count}`); });
  request.on('error', () => {});
}

// Aborts the connection, or over HTTP/2 resets the stream with the code that the request asks for.
function abort(request, response) {
  if (version === 'h1') return request.socket.destroy();
  const how = new URL(request.url, 'http://app').searchParams.get('how');
  if (how === 'go-away') return request.stream.session.destroy();
  const code = { 'no-error': http2.constants.NGHTTP2_NO_ERROR, refused: http2.constants.NGHTTP2_REFUSED_STREAM }[how];
  request.stream.close(code ?? http2.constants.NGHTTP2_INTERNAL_ERROR);
}

function cut(request, response) {
  const at = new URL(request.url, 'http://app').searchParams.get('at');
  if (at === 'start') return abort(request, response);
  if (at === 'upload') return request.once('data', () => abort(request, response));
  response.writeHead(200, at === 'end' ? { trailer: 'x-check' } : {});
  const later = () => setTimeout(() => abort(request, response), 20);
  if (at === 'head') { response.flushHeaders(); later(); }
  else pattern(response, at === 'body' ? 1000 : 100000, later);
}

function answer(request, response) {
  const id = request.headers['x-id'];
  const tell = (told) => seen.set(id, told);
  tell('open');
  open += 1;
  // A request is in flight until both its request and its response have ended.
  let halves = 2;
  const half = () => { if (--halves === 0) open -= 1; };
  if (version === 'h2') { request.stream.once('close', () => { half(); half(); }); }
  else {
    let reading = true;
    const read = () => { if (reading) { reading = false; half(); } };
    request.once('end', read);
    request.once('close', read);
    request.socket.once('close', read);
    response.once('close', half);
  }
  request.on('error', () => {});
  response.on('error', () => {});
  const url = new URL(request.url, 'http://app');
  switch (url.pathname) {
    case '/plain': tell('complete'); request.resume(); return void response.end('plain');
    case '/download':
      request.resume();
      response.once('close', () => { if (!response.writableFinished) tell('cut'); });
      return pattern(response, Number(url.searchParams.get('n')), () => { tell('complete'); response.end(); });
    case '/upload': return read(request, tell, (told) => response.end(told));
    case '/echo': {
      response.writeHead(200);
      response.flushHeaders();
      read(request, tell, () => response.end());
      return void request.on('data', (chunk) => {
        if (!response.write(chunk)) { request.pause(); response.once('drain', () => request.resume()); }
      });
    }
    case '/early': read(request, tell, () => {}); return void response.writeHead(200, { 'content-length': 5 }).end('early');
    case '/reject': tell('refused'); request.resume(); return void response.writeHead(401).end();
    case '/refuse': tell('refused'); return void response.writeHead(413, version === 'h1' ? { connection: 'close' } : {}).end();
    case '/trailers':
      request.resume();
      response.writeHead(200, { trailer: 'x-check' });
      return pattern(response, 1000, () => { tell('complete'); response.addTrailers({ 'x-check': 'down' }); response.end(); });
    case '/hints':
      request.resume();
      tell('complete');
      response.writeEarlyHints({ link: '</style.css>; rel=preload' });
      return void response.end('hints');
    case '/cut': tell('cut'); return cut(request, response);
    default: request.resume(); return void response.writeHead(404).end();
  }
}

const server = version === 'h2' ? http2.createServer(answer) : http.createServer(answer);
server.on('checkContinue', (request, response) => {
  if (request.url !== '/reject') { response.writeContinue(); return answer(request, response); }
  seen.set(request.headers['x-id'], 'refused');
  response.writeHead(401, version === 'h1' ? { connection: 'close' } : {}).end();
});
server.on('sessionError', () => {});
server.on('clientError', (error, socket) => socket.destroy());
server.listen(port);
http.createServer((request, response) => {
  const id = new URL(request.url, 'http://app').searchParams.get('id');
  response.end(id ? seen.get(id) ?? 'none' : String(open));
}).listen(control, '127.0.0.1');
