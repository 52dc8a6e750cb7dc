"""Runs hyper-h2, an independent HTTP/2 stack, as client and application on both sides of the proxy.

usage: h2_oracle.py SEED COUNT ADDRESS:PORT LISTEN_PORT

Streams are interleaved at random but validly: bodies in pieces of any size, trailers, late and partial window updates, PINGs,
responses before the request is complete, resets by either side. hyper-h2 raises an error where the proxy violates the protocol.
Each message that its sender has ended arrives complete, with its trailers; a message that was reset never looks complete.
"""

import random
import select
import socket
import sys
import threading
import time

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.errors import ErrorCodes

TIMEOUT = 20
AT_ONCE = 20
PROBLEMS: list[str] = []


class Half:
    """One direction of a stream: what its sender sends, and what its receiver got."""

    def __init__(self, random_: random.Random) -> None:
        size = int(120_000 ** random_.random()) if random_.random() < 0.8 else 0
        self.body = random_.randbytes(size)
        self.trailers = [("x-last", f"{random_.random()}")] if random_.random() < 0.4 else []
        # Reset after this many octets.
        self.reset_at = random_.randrange(size + 1) if random_.random() < 0.15 else None
        self.received = b""
        self.received_trailers: list = []
        self.is_ended = self.is_reset = False


class Plan:
    """The planned request and response of a stream."""

    def __init__(self, seed: str) -> None:
        random_ = random.Random(seed)
        self.name = seed
        self.request, self.response = Half(random_), Half(random_)
        # Octets of the request that the application reads before it responds.
        self.answer_at = random_.choice([0, len(self.request.body) // 2, len(self.request.body)])
        self.status = random_.choice(["200", "201", "404", "503"])
        self.fields = [(f"x-{at}", f"{random_.random()}" * random_.randrange(1, 9)) for at in range(random_.randrange(9))]
        self.fields += [("cookie", f"part-{at}") for at in range(random_.randrange(3))]


    def is_cut(self) -> bool:
        return self.request.reset_at is not None or self.response.reset_at is not None


class Sending:
    """The progress of sending a half."""

    def __init__(self, half: Half) -> None:
        self.half = half
        self.sent = 0
        self.is_done = False


class Side:
    """One side of a connection: hyper-h2, and what it has to send on each stream."""

    def __init__(self, stream: socket.socket, is_client: bool, random_: random.Random) -> None:
        self.stream, self.random = stream, random_
        config = h2.config.H2Configuration(client_side=is_client, header_encoding="utf-8")
        self.connection = h2.connection.H2Connection(config)
        self.connection.initiate_connection()
        self.plans: dict[int, Plan] = {}
        self.sending: dict[int, Sending] = {}
        self.unacknowledged: list[tuple[int, int]] = []
        self.open = True

    def came(self, plan: Plan) -> Half:
        return plan.response if self.connection.config.client_side else plan.request

    def step(self) -> None:
        """Reads available data, then sends window updates, PINGs and data at random."""
        if select.select([self.stream], [], [], 0.002)[0]:
            octets = self.stream.recv(65536)
            if not octets:
                self.open = False
                return
            try:
                events = self.connection.receive_data(octets)
            except h2.exceptions.ProtocolError as error:
                side = "client" if self.connection.config.client_side else "application"
                PROBLEMS.append(f"the proxy violated the protocol towards the {side}: {error!r}")
                self.open = False
                return
            for event in events:
                self.event(event)
        self.update_windows(0.5)
        if self.random.random() < 0.02:
            self.connection.ping(b"pingpong")
        for stream_id in self.random.sample(sorted(self.sending), len(self.sending)):
            self.send(stream_id, self.sending[stream_id])
        self.stream.sendall(self.connection.data_to_send())

    def update_windows(self, share: float) -> None:
        kept = []
        for stream_id, size in self.unacknowledged:
            if self.random.random() > share:
                kept.append((stream_id, size))
                continue
            try:
                self.connection.acknowledge_received_data(size, stream_id)
            except h2.exceptions.ProtocolError:
                pass  # The stream is closed; the connection's window was updated.
        self.unacknowledged = kept

    def event(self, event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            if event.error_code:
                PROBLEMS.append(f"GOAWAY {event.error_code}")
            self.open = False
        plan = self.plans.get(getattr(event, "stream_id", None))
        if isinstance(event, h2.events.RequestReceived):
            self.request(event)
        elif plan is None:
            return
        elif isinstance(event, h2.events.ResponseReceived):
            headers = dict(event.headers)
            if headers[":status"] != plan.status or headers.get("x-plan") != plan.name:
                PROBLEMS.append(f"{plan.name}: the response is {event.headers}")
        elif isinstance(event, h2.events.DataReceived):
            self.came(plan).received += event.data
            self.unacknowledged.append((event.stream_id, event.flow_controlled_length))
        elif isinstance(event, h2.events.TrailersReceived):
            self.came(plan).received_trailers = [field for field in event.headers]
        elif isinstance(event, h2.events.StreamEnded):
            self.came(plan).is_ended = True
        elif isinstance(event, h2.events.StreamReset):
            self.came(plan).is_reset = True
            self.sending.pop(event.stream_id, None)
        self.answer(getattr(event, "stream_id", None))

    def request(self, event) -> None:
        headers = dict(event.headers)
        plan = PLANS[headers[":path"].lstrip("/")]
        self.plans[event.stream_id] = plan
        wanted = sorted(field for field in plan.fields if field[0] != "cookie")
        got = sorted((name, value) for name, value in event.headers if name.startswith("x-") and name[2:].isdigit())
        cookies = "; ".join(value for name, value in event.headers if name == "cookie")
        if got != wanted or cookies != "; ".join(value for name, value in plan.fields if name == "cookie"):
            PROBLEMS.append(f"{plan.name}: the request is {event.headers}, and not {plan.fields}")

    def answer(self, stream_id: int | None) -> None:
        """The application responds once it has read `answer_at` octets."""
        plan = self.plans.get(stream_id)
        if self.connection.config.client_side or plan is None or hasattr(plan, "is_answered"):
            return
        if plan.request.is_reset or (len(plan.request.received) < plan.answer_at and not plan.request.is_ended):
            return
        plan.is_answered = True
        try:
            self.connection.send_headers(stream_id, [(":status", plan.status), ("x-plan", plan.name)])
            self.sending[stream_id] = Sending(plan.response)
        except h2.exceptions.ProtocolError:
            pass  # The client has reset it.

    def send(self, stream_id: int, sending: Sending) -> None:
        if self.random.random() < 0.3:
            return
        half = sending.half
        try:
            if half.reset_at is not None and sending.sent >= half.reset_at:
                self.connection.reset_stream(stream_id, self.random.choice([ErrorCodes.CANCEL, ErrorCodes.INTERNAL_ERROR]))
                half.was_reset = True
                del self.sending[stream_id]
                return
            end = len(half.body) if half.reset_at is None else half.reset_at
            window = min(self.connection.local_flow_control_window(stream_id), self.connection.max_outbound_frame_size)
            size = min(window, end - sending.sent, self.random.randrange(1, 20_000))
            if size:
                self.connection.send_data(stream_id, half.body[sending.sent : sending.sent + size])
                sending.sent += size
            if sending.sent == len(half.body) and half.reset_at is None:
                if half.trailers:
                    self.connection.send_headers(stream_id, half.trailers, end_stream=True)
                else:
                    self.connection.end_stream(stream_id)
                half.is_sent = True
                del self.sending[stream_id]
        except h2.exceptions.ProtocolError:
            self.sending.pop(stream_id, None)  # The other side has reset it.


PLANS: dict[str, Plan] = {}


def serve(stream: socket.socket, seed: int) -> None:
    side = Side(stream, False, random.Random(seed))
    try:
        while side.open:
            side.step()
    except OSError:
        pass
    finally:
        stream.close()


def is_over(plan: Plan) -> bool:
    response = plan.response
    is_answered = response.is_ended and hasattr(plan.request, "is_sent")
    return is_answered or response.is_reset or hasattr(plan.request, "was_reset")


def call(address, seed: int, count: int) -> None:
    """Runs `count` streams on a new connection."""
    random_ = random.Random(seed)
    side = Side(socket.create_connection(address, TIMEOUT), True, random_)
    names = [f"{seed}-{number}" for number in range(count)]
    waiting, began = list(names), time.monotonic()
    try:
        while side.open and not all(is_over(PLANS[name]) for name in names):
            running = sum(not is_over(plan) for plan in side.plans.values())
            if waiting and running < AT_ONCE and side.connection.open_outbound_streams < AT_ONCE and random_.random() < 0.5:
                plan = PLANS[waiting.pop(0)]
                stream_id = side.connection.get_next_available_stream_id()
                pseudo = [(":method", "POST"), (":scheme", "http"), (":authority", "app"), (":path", f"/{plan.name}")]
                side.connection.send_headers(stream_id, pseudo + plan.fields)
                side.plans[stream_id] = plan
                side.sending[stream_id] = Sending(plan.request)
            side.step()
            if time.monotonic() - began > TIMEOUT:
                late = [name for name in names if not is_over(PLANS[name])]
                PROBLEMS.append(f"not over after {TIMEOUT} s: {late[:5]}")
                break
        # Waits until everything that was sent has arrived.
        for _ in range(500):
            if side.open and not all(plan.is_cut() or plan.request.is_ended for plan in side.plans.values()):
                side.step()
    except OSError as error:
        PROBLEMS.append(f"to the client: {error!r}")
    finally:
        side.stream.close()


def check(plan: Plan) -> None:
    for what, half in (("request", plan.request), ("response", plan.response)):
        if half.is_ended and (half.received, half.received_trailers) != (half.body, half.trailers):
            PROBLEMS.append(f"{plan.name}: {len(half.received)} of {len(half.body)} octets of the {what}, {half.received_trailers}, and an end")
        if half.is_ended and half.reset_at is not None:
            PROBLEMS.append(f"{plan.name}: the {what} was reset, but looks complete")
    for what, half in (("request", plan.request), ("response", plan.response)):
        if not plan.is_cut() and not half.is_ended:
            PROBLEMS.append(f"{plan.name}: nothing was reset, but the {what} is incomplete: {len(half.received)} of {len(half.body)} octets")


def main() -> None:
    seed, count = int(sys.argv[1]), int(sys.argv[2])
    host, port = sys.argv[3].split(":")
    listener = socket.create_server(("0.0.0.0", int(sys.argv[4])), backlog=64)
    connections = max(1, count // 40)
    PLANS.update((f"{seed + at}-{number}", Plan(f"{seed + at}-{number}")) for at in range(connections) for number in range(40))

    def accept() -> None:
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0], seed), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    for at in range(connections):
        call((host, int(port)), seed + at, 40)
    for plan in PLANS.values():
        check(plan)
    assert not PROBLEMS, "\n".join([f"{len(PROBLEMS)} problems:", *PROBLEMS[:10]])
    whole = sum(plan.response.is_ended for plan in PLANS.values())
    print(f"{len(PLANS)} streams on {connections} connections, {whole} responses complete, the others reset")


main()
