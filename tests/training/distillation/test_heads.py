"""Which answers a model gives, and in which module."""

import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification, GPT2LMHeadModel, LlamaForCausalLM

from fineprune import FinepruneError
from fineprune.training.distillation.heads import answers, head_module, head_of


def test_heads_are_known_by_the_class(make_model):
    class Mine(BertForSequenceClassification):
        pass

    assert head_of(make_model()) == head_of(Mine(make_model().config)) == "texts"
    assert head_of(make_model(num_labels=1)) == "values"
    assert head_of(make_model().bert) is None
    with pytest.raises(FinepruneError, match="return_dict"):
        answers((torch.zeros(1),))


def test_causal_language_models_answer_the_next_token():
    assert head_of(LlamaForCausalLM.__new__(LlamaForCausalLM)) == "next_tokens"
    assert head_of(GPT2LMHeadModel.__new__(GPT2LMHeadModel)) == "next_tokens"


def test_the_head_may_be_inside_another_module(make_model):
    model = make_model()
    assert head_module(nn.Sequential(nn.Linear(2, 2), model)) is model
    assert head_module(model) is model
    assert head_module(model.bert) is model.bert


def test_the_logits_of_spans_are_side_by_side():
    outputs = {"start_logits": torch.tensor([[1.0, 2.0]]), "end_logits": torch.tensor([[3.0, 4.0]])}
    assert answers(outputs).tolist() == [[[1.0, 3.0], [2.0, 4.0]]]
