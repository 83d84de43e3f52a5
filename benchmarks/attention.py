"""Eager attention beside torch's fused one: how long a training step and a forward pass take, by length.

    taskset -c 0 python benchmarks/attention.py
    taskset -c 0 python benchmarks/attention.py --precision float32 --dropout 0.1 --lengths 64 256

Two layers of MiniLM's shape with random weights, about 2,048 tokens a batch, one thread. A ratio is eager to
fused, of processor time, the median over interleaved rounds: above 1 the fused one is faster. By this the
steps of a run in bfloat16 without dropout are eager on short batches alone
(`fineprune.training.host.attention`).
"""

import argparse
import statistics
import time
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

TOKENS = 2048


def _model(attention: str, dropout: float) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=3000,
        hidden_size=384,
        num_hidden_layers=2,
        num_attention_heads=12,
        intermediate_size=1536,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        attn_implementation=attention,
    )
    return BertForSequenceClassification(config).train()


def _seconds(
    model: BertForSequenceClassification, inputs: dict[str, Any], bfloat16: bool, step: bool
) -> float:
    start = time.process_time()
    with torch.set_grad_enabled(step), torch.autocast("cpu", torch.bfloat16, bfloat16):
        loss = model(**inputs).loss
    if step:
        loss.backward()
        model.zero_grad()
    return time.process_time() - start


def _ratios(length: int, dropout: float, bfloat16: bool, rounds: int) -> list[float]:
    """Return the median ratios of eager to fused: a step's forward and backward pass, and a forward pass."""
    models = [_model(attention, dropout) for attention in ("eager", "sdpa")]
    ids = torch.randint(3000, (max(2, TOKENS // length), length))
    mask = torch.ones_like(ids)
    mask[0, -(length // 8) :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(len(ids), dtype=torch.long)}
    ratios: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for found, step in zip(ratios, (True, False), strict=True):
            eager, fused = (_seconds(model, inputs, bfloat16, step) for model in models)
            found.append(eager / fused)
    return [statistics.median(found[1:]) for found in ratios]  # without the first, which warms up


def main() -> None:
    """Print a line for each length."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 64, 128, 192, 256, 384])
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{args.precision}, dropout {args.dropout}, eager / fused")
    print("| tokens | a step | a forward pass |\n|---:|---:|---:|")
    for length in args.lengths:
        step, forward = _ratios(length, args.dropout, args.precision == "bfloat16", args.rounds)
        print(f"| {length} | {step:.2f} | {forward:.2f} |", flush=True)


if __name__ == "__main__":
    main()
