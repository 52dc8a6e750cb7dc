"""Checks what the proxy sends to clients and applications with h11, an independent HTTP/1.1 parser.

usage: h11_oracle.py SEED COUNT ADDRESS:PORT LISTEN_PORT

The proxy forwards ADDRESS:PORT to an application at LISTEN_PORT, which reads with h11 and echoes in each response what it read.

- Valid requests, with random framing and sent in pieces of any size, arrive unchanged, and so do the responses.
- Mutated requests, a few per connection: the application receives what h11 reads from the mutated octets themselves, in the same
  order, up to the point where the proxy refuses. No octet of a body becomes a request.
"""

import json
import random
import re
import socket
import sys
import threading

import h11

TIMEOUT = 10
SEEN: dict[str, list] = {}
VIOLATIONS: list[str] = []
LOCK = threading.Lock()
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n"
# Headers that a proxy may add, remove or rewrite.
HOPS = {"host", "connection", "content-length", "transfer-encoding", "keep-alive", "te", "trailer", "expect", "upgrade"}


class Message:
    """A complete request or response."""

    def __init__(self, head) -> None:
        self.head = head
        self.body = b""
        self.trailers: list = []

    def end_to_end(self) -> list:
        return [(name.decode(), value.decode("latin-1")) for name, value in self.head.headers if name.decode() not in HOPS]

    def comparable(self) -> list:
        """The request in a form that can be compared."""
        trailers = [(name.decode(), value.decode("latin-1")) for name, value in self.trailers]
        return json.loads(
            json.dumps([self.head.method.decode(), target(self.head.target.decode("latin-1")), self.body.decode("latin-1"), trailers])
        )


def target(text: str) -> str:
    """The path of a target. Consecutive slashes count as one, as policies read them."""
    path = "/" + text.split("//", 1)[1].partition("/")[2] if text.lower().startswith("http://") else text
    return re.sub("/+", "/", path)


def messages(connection: h11.Connection, receive):
    """Yields the complete messages of the peer. `receive` returns b"" at the end."""
    message = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(receive())
        elif isinstance(event, (h11.Request, h11.Response)):
            message = Message(event)
        elif isinstance(event, h11.Data):
            message.body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            message.trailers = list(event.headers)
            yield message
        elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
            return


def serve(stream: socket.socket) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 17)
    try:
        for message in messages(connection, lambda: stream.recv(65536)):
            case = dict(message.end_to_end()).get("x-case", "none")
            with LOCK:
                SEEN.setdefault(case, []).append(message.comparable())
            random_ = random.Random(f"{case} {message.head.target}")
            body = json.dumps(message.comparable() + [message.end_to_end()]).encode()
            framing = random_.choice(["length", "chunked", "chunked"])
            headers = [("x-from", "application"), ("x-spare", "  ".join(["a"] * random_.randrange(1, 5)))]
            headers += [("content-length", str(len(body)))] if framing == "length" else [("transfer-encoding", "chunked")]
            out = connection.send(h11.Response(status_code=random_.choice([200, 201, 404, 418, 503]), headers=headers))
            for part in pieces(random_, body, 1 if framing == "length" else 6):
                out += connection.send(h11.Data(data=part))
            is_old = message.head.http_version < b"1.1"
            trailers = [("x-end", "yes")] if framing == "chunked" and not is_old else []
            out += connection.send(h11.EndOfMessage(headers=trailers))
            stream.sendall(out)
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()
    except h11.RemoteProtocolError as error:
        # The proxy truncates requests that it refuses. Any other error is a violation.
        if "closed connection" not in str(error) and "peer unexpectedly" not in str(error):
            with LOCK:
                VIOLATIONS.append(f"{error}: {connection.trailing_data[0][:200]!r}")
    except OSError:
        pass
    finally:
        stream.close()


def pieces(random_: random.Random, octets: bytes, most: int) -> list[bytes]:
    cuts = sorted(random_.randrange(len(octets) + 1) for _ in range(random_.randrange(most)))
    return [octets[start:end] for start, end in zip([0, *cuts], [*cuts, len(octets)]) if start != end]


def request(random_: random.Random, case: str, number: int) -> tuple[bytes, list, list]:
    """A valid request: its octets, its expected echo, and its fields."""
    method = random_.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "QUERY"])
    path = f"/{case}/{number}?" + "".join(random_.choices("abc&=%20/.;,+~", k=random_.randrange(40))).replace("%", "")
    fields = [("x-case", case)]
    for at in range(random_.randrange(8)):
        text = "".join(chr(random_.choice([9, 32, *range(33, 127), *range(160, 256)])) for _ in range(random_.randrange(60)))
        fields.append((f"x-{'abc'[at % 3]}-{random_.randrange(4)}", text.strip(" \t\xa0\x85")))
    body, trailers = b"", []
    framing = random_.choice(["none", "length", "chunked"]) if method not in ("GET", "DELETE") else "none"
    headers = [("host", "app"), *fields]
    if framing != "none":
        body = random_.choice([b"", SMUGGLED, random_.randbytes(random_.randrange(1, 3000)), b"0\r\n\r\n" + SMUGGLED])
        headers += [("content-length", str(len(body)))] if framing == "length" else [("transfer-encoding", "chunked")]
    connection = h11.Connection(h11.CLIENT)
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    out = connection.send(h11.Request(method=method, target=path, headers=encoded))
    for part in pieces(random_, body, 8 if framing == "chunked" else 1):
        out += connection.send(h11.Data(data=part))
    if framing == "chunked" and random_.random() < 0.4:
        trailers = [("x-last", "of all")]
    out += connection.send(h11.EndOfMessage(headers=trailers))
    return out, json.loads(json.dumps([method, target(path), body.decode("latin-1"), trailers])), fields


def receive(stream: socket.socket, silence: float) -> bytes:
    """Reads octets. After `silence` seconds it half-closes: a mutation may have made both sides wait for more of a message."""
    stream.settimeout(silence)
    try:
        return stream.recv(65536)
    except TimeoutError:
        stream.shutdown(socket.SHUT_WR)
        stream.settimeout(TIMEOUT)
        return stream.recv(65536)


def exchange(random_: random.Random, address, octets: bytes, methods: list[str], silence: float = TIMEOUT) -> tuple[list, str]:
    """Sends octets in pieces. Returns the responses and the error, if any."""
    stream = socket.create_connection(address, TIMEOUT)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    got = []
    try:
        for part in pieces(random_, octets, 5):
            stream.sendall(part)
        buffer = b""
        for method in methods:
            # h11 needs the request's method to parse its response.
            connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 17)
            connection.send(h11.Request(method=method, target="/", headers=[("host", "app")]))
            connection.send(h11.EndOfMessage())
            first = [buffer] if buffer else []
            reading = messages(connection, lambda: first.pop() if first else receive(stream, silence))
            message = next(reading, None)
            if message is None:
                return got, "closed"
            got.append(message)
            buffer = connection.trailing_data[0]
            if dict(message.head.headers).get(b"connection") == b"close":
                return got, "closed" if not buffer else f"octets behind the end: {buffer[:100]!r}"
    except h11.RemoteProtocolError as error:
        is_end = "without sending complete" in str(error) or "ConnectionClosed when role=SERVER" in str(error)
        return got, "closed" if is_end else str(error)
    except OSError as error:
        if isinstance(error, TimeoutError):
            return got, "silence"
        return got, "closed"
    finally:
        stream.close()
    return got, ""


def legal(random_: random.Random, address, case: str) -> None:
    requests = [request(random_, case, number) for number in range(random_.randrange(1, 5))]
    got, problem = exchange(random_, address, b"".join(octets for octets, _, _ in requests), [told[0] for _, told, _ in requests])
    assert problem == "" and len(got) == len(requests), f"{case}: {problem}, {len(got)} responses to {len(requests)} requests"
    for message, (_, wanted, fields) in zip(got, requests):
        echoed = json.loads(message.body)
        assert echoed[:4] == wanted, f"{case}: {echoed[:4]}, and not {wanted}"
        arrived = [tuple(field) for field in echoed[4]]
        for name in {name for name, _ in fields}:
            values = lambda of: [value for key, value in of if key == name]
            assert values(arrived) == values(fields), f"{case}: {name}: {values(arrived)}, and not {values(fields)}"
        assert ("x-from", "application") in message.end_to_end(), case


MUTATIONS = [
    (b"\r\n", b"\n"), (b"\r\n", b"\r"), (b"\r\n", b"\r\n "), (b": ", b" : "), (b": ", b":\t"), (b": ", b":"), (b" HTTP/1.1", b" HTTP/1.0"),
    (b" HTTP/1.1", b"  HTTP/1.1"), (b"Host", b"hOST"), (b"Content-Length: ", b"Content-Length: +"), (b"Content-Length: ", b"Content-Length: 0"),
    (b"Content-Length: ", b"Content-Length: 1"), (b"content-length: ", b"content-length: 0, "), (b"content-length", b"content_length"),
    (b"content-length: ", b"content-length: 0\r\ncontent-length: "), (b"transfer-encoding: chunked", b"transfer-encoding: xchunked"),
    (b"transfer-encoding: chunked", b"transfer-encoding: chunked\r\ncontent-length: 5"), (b"transfer-encoding: chunked", b"transfer-encoding:\x0bchunked"),
    (b"transfer-encoding: chunked", b"transfer-encoding: chunked, identity"), (b"transfer-encoding: chunked", b"Transfer-Encoding: CHUNKED"),
    (b"transfer-encoding: chunked", b"x: y\r\ntransfer-encoding : chunked"), (b"\r\n\r\n", b"\r\n\n"), (b"\r\n0\r\n", b"\r\n00\r\n"), (b"\r\n0\r\n", b"\r\n0;a=b\r\n"),
    (b"\r\n0\r\n", b"\r\n0 \r\n"), (b"\r\n0\r\n", b"\r\n-0\r\n"), (b"\r\n0\r\n", b"\r\n0x0\r\n"), (b"GET ", b"GET\t"), (b"GET /", b"GET http://app/"),
]  # fmt: skip


def read_directly(octets: bytes) -> list[Message]:
    """The requests that h11 reads directly from the octets."""
    found = []
    try:
        while octets:
            # Empty lines before a request are ignored (RFC 9112 2.2), but h11 refuses them.
            octets = re.sub(rb"^(\r?\n)+", b"", octets)
            parts = [octets]
            connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 17)
            message = next(messages(connection, lambda: parts.pop() if parts else b""), None)
            if message is None:
                break
            found.append(message)
            connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                break
            octets = connection.trailing_data[0]
    except h11.RemoteProtocolError:
        pass
    return found


def mutated(random_: random.Random, address, case: str) -> str:
    octets = b"".join(request(random_, case, number)[0] for number in range(random_.randrange(1, 4)))
    for _ in range(random_.randrange(1, 3)):
        if random_.random() < 0.7:
            old, new = random_.choice(MUTATIONS)
            places = [at for at in range(len(octets)) if octets[at : at + len(old)].lower() == old.lower()]
            if places:
                at = random_.choice(places)
                octets = octets[:at] + new + octets[at + len(old) :]
        else:
            at = random_.randrange(len(octets))
            octets = octets[:at] + random_.choice([b"", bytes([random_.randrange(256)]), octets[at : at + 1] * 2]) + octets[at + 1 :]
    octets += f"GET /last HTTP/1.1\r\nHost: app\r\nx-case: {case}\r\nconnection: close\r\n\r\n".encode()
    wanted = [message.comparable() for message in read_directly(octets) if dict(message.end_to_end()).get("x-case", "none") == case]
    _, problem = exchange(random_, address, octets, ["GET"] * 5, silence=0.1)
    assert problem in ("", "closed"), f"{case}: {problem}; sent {octets!r}"
    return json.dumps([case, octets.decode("latin-1"), wanted])


def main() -> None:
    seed, count = int(sys.argv[1]), int(sys.argv[2])
    host, port = sys.argv[3].split(":")
    address = (host, int(port))
    listener = socket.create_server(("0.0.0.0", int(sys.argv[4])), backlog=256)

    def accept() -> None:
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    random_ = random.Random(seed)
    for number in range(count):
        legal(random_, address, f"legal-{seed}-{number}")
    inputs = [json.loads(mutated(random_, address, f"mutated-{seed}-{number}")) for number in range(count)]
    smuggled = [case for case, seen in SEEN.items() if any(told[1] == "/smuggled" for told in seen)]
    assert not VIOLATIONS, VIOLATIONS[:5]
    passed, differences = 0, []
    for case, octets, wanted in inputs:
        got = SEEN.get(case, [])
        passed += len(got)
        if got != wanted[: len(got)]:
            differences.append(f"{case}: the application got {got}, but h11 reads {wanted} from {octets!r}")
    assert not differences, "\n".join([f"{len(differences)} differences:", *differences[:5]])
    print(f"{count} valid and {count} mutated connections; {passed} requests of the mutated ones reached the application")


main()
