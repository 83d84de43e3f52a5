"""Who divides the loss of a micro-batch, and by what the terms that join it are divided."""

from types import SimpleNamespace

import pytest
from transformers import BertForSequenceClassification, LlamaForCausalLM, Trainer

from fineprune.training.host import accumulation


class Own(Trainer):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs)


@pytest.mark.parametrize(
    ("host", "model", "counts"),
    [
        (Trainer, BertForSequenceClassification, False),
        (Trainer, LlamaForCausalLM, False),
        (Own, BertForSequenceClassification, False),  # may ask the model, whose head drops the number
        (Own, LlamaForCausalLM, True),
    ],
)
def test_only_a_host_with_a_loss_over_tokens_counts_them_itself(host, model, counts):
    trainer = SimpleNamespace(model=model.__new__(model), model_accepts_loss_kwargs=True)
    accumulation.correct(trainer, host)
    assert trainer.model_accepts_loss_kwargs == counts


@pytest.mark.parametrize(
    ("settings", "items", "parts"),
    [
        ({}, None, 1),
        ({}, 7, 1),
        ({"model_accepts_loss_kwargs": True}, None, 1),
        ({"model_accepts_loss_kwargs": True}, 7, 4),
        ({"compute_loss_func": len}, None, 4),
        ({"loss_is_scaled_for_ga": True}, None, 4),
        ({"loss_is_scaled_for_ga": False, "compute_loss_func": len}, 7, 1),
    ],
)
def test_terms_are_divided_where_the_whole_loss_is_not(settings, items, parts):
    usual = {"model_accepts_loss_kwargs": False, "compute_loss_func": None}
    trainer = SimpleNamespace(**(usual | {"current_gradient_accumulation_steps": 4} | settings))
    assert accumulation.parts(trainer, items) == parts
