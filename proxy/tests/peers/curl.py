"""Runs curl for the commands of matrix.rs.

usage: curl.py OPTION...     the options choose the version of HTTP
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PATTERN = b"0123456789abcdef" * 4096


def pattern(size: int) -> bytes:
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


def command(folder: Path, words: list[str]) -> dict:
    verb, address, id_, path = words[:4]
    options = words[5].split(",") if len(words) > 5 else []
    heads = folder / "heads"
    heads.write_text("")
    call = ["curl", "--silent", "--show-error", "--no-buffer", "--max-time", "6", *sys.argv[1:]]
    call += ["--header", f"x-id: {id_}", "--dump-header", str(heads), f"http://{address}{path}"]
    size = int(words[4]) if verb == "post" else 0
    if verb == "post":
        call += ["--request", "POST"]
        call += ["--header", "Expect: 100-continue", "--expect100-timeout", "6"] if "expect" in options else ["--header", "Expect:"]
        if "length" in options:
            (folder / "body").write_bytes(pattern(size))
            call += ["--upload-file", str(folder / "body")]
        else:
            call += ["--upload-file", "-"]
    curl = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    leaves = next((option for option in options if option.startswith("leave")), None)
    try:
        if verb == "leave" or leaves:
            if leaves:
                curl.stdin.write(pattern({"leave-head": 0, "leave-body": size // 2, "leave-end": size}[leaves]))
                curl.stdin.flush()
                time.sleep(0.1)
            else:
                curl.stdout.read(1000)
            curl.kill()
            curl.wait()
            return {"status": 0, "error": "left"}
        body, errors = curl.communicate(pattern(size) if verb == "post" and "length" not in options else None)
    except BrokenPipeError:
        body, errors = curl.stdout.read(), curl.stderr.read()
        curl.wait()
    blocks = [block for block in re.split(r"\r\n\r\n", heads.read_bytes().decode("latin-1")) if block]
    statuses = [int(block.split(" ")[1].split("\r")[0]) for block in blocks if block.startswith("HTTP/")]
    trailers = [block for block in blocks if not block.startswith("HTTP/")]
    found = re.search(r"(?im)^x-check: *(\S+)", "\n".join(trailers))
    return {
        # curl reports an upgrade as 101.
        "status": statuses[-1] if statuses and statuses[-1] >= 200 else 0,
        "interim": [status for status in statuses if status < 200 and status != 101],
        "length": len(body),
        "sum": hashlib.sha256(body).hexdigest()[:16],
        "text": body.decode("latin-1") if len(body) <= 200 else "",
        "trailer": found[1] if found else "",
        "error": errors.decode("latin-1").strip() if curl.returncode else "",
    }


with tempfile.TemporaryDirectory() as folder:
    for line in sys.stdin:
        print(json.dumps(command(Path(folder), line.split())), flush=True)
