"""Models of transformers become sparse and stay what they were."""

import copy

import pytest
import torch
from support import PRUNING, tiny_bert

from fineprune.config import METHODS, PruningConfig
from fineprune.pruning.finalizing import finalize
from fineprune.pruning.preparing import prepare

# Six matrices in each of two layers. Of 10 %, a global ranking keeps 410 (409.6), a local one in
# each layer 4 * 26 (25.6) and 2 * 51 (51.2), together 412.
WEIGHTS = 2 * (4 * 16 * 16 + 2 * 16 * 32)


@pytest.mark.parametrize("method", PRUNING)
def test_from_a_dense_model_to_a_sparse_one_of_the_same_kind(method):
    model = tiny_bert()
    kind, before = type(model), copy.deepcopy(model.state_dict())
    kinds = {name: type(module) for name, module in model.named_modules()}
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    pruner = prepare(model, PruningConfig(method, density=0.1, warmup=2, cooldown=3), 10)
    assert pruner.model is model
    assert pruner.density == 1.0
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(pruner.parameter_groups(1e-3))
    for _ in range(10):
        tokens = torch.randint(0, 30, (4, 12), generator=generator)
        optimizer.zero_grad()
        (model(tokens, labels=tokens[:, 0] % 2).loss + pruner.penalty()).backward()
        optimizer.step()
        pruner.step()
    assert abs(pruner.density - 0.1) <= 0.001
    model.eval()
    masks = {target.name: target.masked.kept().clone() for target in pruner.targets}
    with torch.no_grad():
        logits = model(tokens).logits
    assert finalize(model) is model

    assert type(model) is kind
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    after = model.state_dict()
    assert set(after) == set(before)
    assert {name: value.shape for name, value in after.items()} == {n: v.shape for n, v in before.items()}
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trainable
    assert len(masks) == 12
    for name, mask in masks.items():
        weight = after[f"{name}.weight"]
        assert torch.equal(weight != 0, mask)
        assert not weight[~mask].signbit().any()
    zeros = sum(int((after[f"{name}.weight"] == 0).sum()) for name in masks)
    assert zeros == WEIGHTS - (410 if METHODS[method].scopes[0] == "global" else 412)
    with torch.no_grad():
        assert torch.allclose(model(tokens).logits, logits, atol=1e-6)
    for name in before:
        if "embeddings.word" in name:
            assert torch.equal(after[name], before[name])  # frozen
    tiny_bert(seed=1).load_state_dict(after)  # strict
