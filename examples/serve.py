"""Serve a compact classifier over HTTP, in batches, without torch.

    python examples/serve.py small --port 8000
    python examples/serve.py exported --runtime openvino    # what `fineprune export --to openvino` wrote
    curl -X POST localhost:8000/predict -H 'Content-Type: application/json' -d '{"text": "a good film"}'

LitServe queues requests and makes the batches: texts that come within two milliseconds are answered together.
"""

import argparse
import json
from pathlib import Path

import litserve
import numpy as np

MOST, WAIT = 16, 0.002


class Engine(litserve.LitAPI):
    """A compact folder in the sparse engine."""

    def __init__(self, folder: str) -> None:
        super().__init__(max_batch_size=MOST, batch_timeout=WAIT)
        self.folder = folder

    def setup(self, device: str) -> None:
        import fineprune_runtime

        self.model = fineprune_runtime.load(self.folder, dtype="int8", threads=1)

    def decode_request(self, request: dict) -> str:
        return request["text"]

    def batch(self, inputs: list[str]) -> list[str]:
        return inputs

    def predict(self, x: list[str]) -> list[tuple[str, float]]:
        return [(answer.label, answer.score) for answer in self.model.predict(x)]

    def unbatch(self, output: list[tuple[str, float]]) -> list[tuple[str, float]]:
        return output

    def encode_response(self, output: tuple[str, float]) -> dict:
        return {"label": output[0], "score": output[1]}


class OpenVINO(Engine):
    """The same for an export to OpenVINO, to compare with."""

    def setup(self, device: str) -> None:
        import openvino
        from tokenizers import Tokenizer

        path, settings = Path(self.folder), {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
        self.network = openvino.Core().compile_model(path / "openvino_model.xml", "CPU", settings)
        self.tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        self.tokenizer.enable_padding()
        labels = json.loads((path / "config.json").read_text())["id2label"]
        self.labels = [labels[str(i)] for i in range(len(labels))]

    def predict(self, x: list[str]) -> list[tuple[str, float]]:
        encoded = self.tokenizer.encode_batch(x)
        given = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        wanted = {entry.get_any_name() for entry in self.network.inputs}
        feeds = {
            name: np.array([getattr(row, field) for row in encoded], np.int64)
            for name, field in given.items()
            if name in wanted
        }
        logits = self.network(feeds)[0]
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        return [(self.labels[row.argmax()], float(row.max())) for row in shares]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--runtime", choices=("engine", "openvino"), default="engine")
    given = parser.parse_args()
    api = (Engine if given.runtime == "engine" else OpenVINO)(given.folder)
    litserve.LitServer(api, accelerator="cpu").run(port=given.port, generate_client_file=False)
