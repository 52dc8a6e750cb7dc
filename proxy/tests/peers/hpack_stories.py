"""HPACK stories with python-hyper's hpack: the same two commands as the Go peer (see proxy/codec/src/hpack/stories.rs).

usage: hpack_stories.py encode SEED STORIES BLOCKS     prints one JSON object per line for each block
       hpack_stories.py decode                         reads such lines, and fails at the first that decodes differently
"""

import json
import random
import sys

from hpack import Decoder, Encoder, HeaderTuple, NeverIndexedHeaderTuple

NAMES = [
    "accept", "accept-encoding", "accept-language", "authorization", "cache-control", "content-length", "content-type",
    "cookie", "date", "etag", "if-none-match", "last-modified", "location", "referer", "server", "set-cookie",
    "user-agent", "vary", "via", "x-request-id", "traceparent", "grpc-timeout", "grpc-status", "te", "x-b3-traceid",
    *(f"x-name-{number}" for number in range(40)),
]  # fmt: skip
TEXT = "".join(chr(octet) for octet in range(33, 127))
OCTETS = TEXT + "".join(chr(octet) for octet in range(128, 256))


def text(random_: random.Random, alphabet: str, longest: int) -> str:
    """Random text. Short texts are more frequent than long ones."""
    return "".join(random_.choices(alphabet, k=int(longest ** random_.random())))


def fields(random_: random.Random, values: list[str]) -> list[list]:
    pick = random_.random
    if pick() < 0.5:
        path = "/" + text(random_, "abcdefghij/-._~0123456789", 100 if pick() < 0.9 else 3000)
        block = [
            [":method", random_.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "CUSTOM"]), False],
            [":scheme", random_.choice(["http", "https"]), False],
            [":authority", random_.choice(["app", "app.shop:8080", f"host-{random_.randrange(30)}.example"]), False],
            [":path", random_.choice(["/", "/index.html", path]), False],
        ]
    else:
        block = [[":status", str(random_.choice([200, 204, 206, 302, 304, 400, 404, 418, 500, 503])), False]]
    for _ in range(random_.randrange(20)):
        if not values or pick() < 0.3:
            # A few are larger than the table.
            values.append(text(random_, OCTETS if pick() < 0.2 else TEXT, 60 if pick() < 0.97 else 6000))
        value = values[-1 - int(min(random_.expovariate(0.1), len(values) - 1))]
        # A new value: one that was in the table before would be encoded as an index.
        never = pick() < 0.1
        block.append([random_.choice(NAMES), f"secret {random_.getrandbits(64)}" if never else value, never])
    return block


def encode(seed: int, stories: int, blocks: int) -> None:
    random_ = random.Random(seed)
    for story in range(stories):
        encoder, values = Encoder(), []
        for _ in range(blocks):
            sizes = []
            if random_.random() < 0.05:
                # hpack emits no update if the last size equals the current one, so each size differs from it.
                others = {0, 31, 64, 100, 500, 1000, 4095, 4096} - {encoder.header_table_size}
                sizes = random_.sample(sorted(others), random_.randrange(1, 4))
            for size in sizes:
                encoder.header_table_size = size
            block = fields(random_, values)
            kinds = [(NeverIndexedHeaderTuple if never else HeaderTuple, name, value) for name, value, never in block]
            headers = [kind(name.encode(), value.encode("latin-1")) for kind, name, value in kinds]
            octets = encoder.encode(headers, huffman=random_.random() < 0.5)
            print(json.dumps({"story": story, "sizes": sizes, "block": octets.hex(), "fields": block}))


def decode() -> None:
    decoder, story, count = Decoder(max_header_list_size=1 << 20), 0, 0
    for line in sys.stdin:
        told = json.loads(line)
        if told["story"] != story:
            decoder, story = Decoder(max_header_list_size=1 << 20), told["story"]
        for size in told["sizes"]:
            # After lowering the allowed size, the decoder expects a size update in the next block.
            decoder.max_allowed_table_size = size
        headers = decoder.decode(bytes.fromhex(told["block"]), raw=True)
        found = [[name.decode(), value.decode("latin-1")] for name, value in headers]
        assert found == [field[:2] for field in told["fields"]], f"line {count}: {found}, and not {told['fields']}"
        for header, (name, _, never) in zip(headers, told["fields"]):
            assert not never or not header.indexable, f"line {count}: {name} may be put into a table"
        count += 1
    print(count)


if sys.argv[1:2] == ["encode"]:
    encode(*(int(number) for number in sys.argv[2:]))
else:
    decode()
