"""What tests of several folders share and a fixture would make clumsy."""

import sys

import pytest
import torch

from fineprune import cli
from fineprune.config import METHODS

PRUNING = tuple(name for name, traits in METHODS.items() if traits.in_paper)
"""The paper's methods: they start from a dense model and end at the density asked for."""

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def tiny_bert(head: str = "ForSequenceClassification", seed: int = 0, **settings):
    """A BERT of two blocks and 16 hidden units; `settings` go before those written here."""
    import transformers

    sizes = {
        "vocab_size": 30,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 12,
    }
    torch.manual_seed(seed)
    return getattr(transformers, f"Bert{head}")(transformers.BertConfig(**(sizes | settings)))


def call(*arguments) -> int:
    """The exit code of `fineprune ARGUMENTS`, in this process."""
    before = sys.argv
    sys.argv = ["fineprune", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        sys.argv = before
    return stop.value.code
