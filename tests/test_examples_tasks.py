"""The example files of tasks, runtimes and servers run as they are written."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from support import example

EXAMPLES = Path(__file__).parents[1] / "examples"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXT = "a good bad so film acting ann bob is in left and rome paris who ?"
WORDS = [*SPECIAL, *TEXT.split()]


@pytest.fixture(scope="module")
def body(save_body):
    return save_body(WORDS, hidden_size=32, intermediate_size=64, initializer_range=0.3)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore:.pin_memory")
def test_accelerate_loop(body):
    assert example("accelerate_loop").main(body, steps=12) == pytest.approx(0.25, abs=1e-3)


@pytest.mark.filterwarnings("ignore:.pin_memory")
def test_entities(body):
    found = example("entities").main(body, steps=80)
    assert [(entity.text, entity.label) for entity in found] == [("bob", "PER"), ("rome", "LOC")]


def test_questions(body):
    found = example("questions").main(body, steps=120)
    assert [answer.text for answer in found] == ["ann", "bob"]


def test_structured_onnx(body, capsys):
    shrunk = example("structured_onnx").main(body, steps=12)
    before, after = shrunk.parameters
    assert after < before
    assert float(capsys.readouterr().out.rpartition("largest difference: ")[2]) < 1e-4


def test_serve(body, capsys, save_compact_classifier):
    small = save_compact_classifier(body)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, EXAMPLES / "serve.py", small, "--port", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, start_new_session=True, **quiet)  # it has children
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, server)
        found = example("load_test").main(url, ["a good film", "so bad"], clients=4, requests=40)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(30)
    assert found["requests a second"] > 0
    assert found["p50 ms"] <= found["p99 ms"]
    assert "p99 ms" in capsys.readouterr().out


@pytest.fixture
def save_compact_classifier(tmp_path):
    """`save_compact_classifier(body)`: the folder of a compact classifier."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import fineprune

    def save(body):
        model = AutoModelForSequenceClassification.from_pretrained(body, num_labels=2)
        config = fineprune.PruningConfig("magnitude", 0.5, warmup=0, cooldown=0)
        fineprune.prepare(model, config, total_steps=1).step()
        fineprune.finalize(model)
        out = tmp_path / "small"
        fineprune.save_compact(model, out, tokenizer=AutoTokenizer.from_pretrained(body))
        return out

    return save


def _wait_for(url, server):
    for _ in range(600):
        if server.poll() is not None:
            raise AssertionError(f"the server ended with {server.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/health") as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.1)
    raise AssertionError("the server did not start")
