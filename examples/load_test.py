"""Measure a server of examples/serve.py: requests a second, and the time that one takes.

python examples/load_test.py http://localhost:8000 texts.txt [CLIENTS [REQUESTS]]
"""

import json
import statistics
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def ask(url: str, text: str) -> float:
    """Return the seconds that the answer to one text takes."""
    body = json.dumps({"text": text}).encode()
    request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})
    started = time.perf_counter()
    with urllib.request.urlopen(request) as answer:
        json.load(answer)
    return time.perf_counter() - started


def main(url: str, texts: list[str], clients: int = 8, requests: int = 1000) -> dict[str, float]:
    """Ask for `requests` texts from as many threads as there are clients, and print what was measured."""
    ask(url, texts[0])
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        seconds = sorted(pool.map(lambda i: ask(url, texts[i % len(texts)]), range(requests)))
    whole = time.perf_counter() - started
    found = {
        "requests a second": requests / whole,
        "p50 ms": 1000 * statistics.median(seconds),
        "p99 ms": 1000 * seconds[int(0.99 * (requests - 1))],
    }
    for name, value in found.items():
        print(f"{name:18} {value:10.1f}")
    return found


if __name__ == "__main__":
    lines = [line for line in Path(sys.argv[2]).read_text(encoding="utf-8").splitlines() if line.strip()]
    main(sys.argv[1], lines, *map(int, sys.argv[3:5]))
