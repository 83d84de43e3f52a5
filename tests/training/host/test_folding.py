"""An ordinary model for a moment, and its weights back in the prepared one."""

import torch
from support import tiny_bert

from fineprune import PruningConfig, prepare
from fineprune.training.host.folding import is_prepared, ordinary_copy, take_weights


def prepared():
    model = tiny_bert()
    pruner = prepare(model, PruningConfig("movement", density=0.5, warmup=0, cooldown=1), 2)
    pruner.step()
    pruner.step()
    return model, pruner


def test_a_copy_is_ordinary_and_the_model_stays_prepared():
    model, pruner = prepared()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copy = ordinary_copy(model)
    assert is_prepared(model)
    assert not is_prepared(copy)
    assert copy.state_dict().keys() == tiny_bert().state_dict().keys()
    for target in pruner.targets:
        expected = torch.where(target.masked.mask, target.weight, 0)
        assert torch.equal(copy.get_submodule(target.name).weight, expected)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_and_hidden_weights_come_back_bit_for_bit():
    model, pruner = prepared()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copy, rest = ordinary_copy(model), pruner.tensors()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    take_weights(model, copy)
    target = pruner.targets[0]
    assert torch.equal(target.weight, torch.where(target.masked.mask, target.weight, 0))
    pruner.load_tensors(rest)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
