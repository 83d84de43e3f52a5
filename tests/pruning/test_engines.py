"""Recomputation and compilation of a model in training leave its gradients as they were."""

import copy

import pytest
import torch
from support import NO_DROPOUT, PRUNING, tiny_bert
from torch.utils.checkpoint import checkpoint

from fineprune.config import PruningConfig
from fineprune.pruning.preparing import prepare

STEPS = 6


def prepared(method, gradient_checkpointing=False):
    model = tiny_bert(
        initializer_range=0.3,
        problem_type="single_label_classification",  # else set by the first step, and compiled anew
        **NO_DROPOUT,
    )
    pruner = prepare(model.train(), PruningConfig(method, density=0.3, warmup=1, cooldown=2), STEPS)
    if gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": True})
    return model, pruner


def losses(model, pruner, run):
    """Of a few steps, and the gradients of the last."""
    optimizer = torch.optim.AdamW(pruner.parameter_groups(1e-2))
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(2)  # l0's gates
    found = []
    for _ in range(STEPS):
        tokens = torch.randint(0, 30, (4, 8), generator=generator)
        optimizer.zero_grad()
        loss = run(tokens, labels=tokens[:, 0] % 2).loss + pruner.penalty()
        loss.backward()
        found.append(loss.item())
        gradients = [copy.deepcopy(parameter.grad) for parameter in model.parameters()]
        optimizer.step()
        pruner.step()
    return found, [gradient for gradient in gradients if gradient is not None]


@pytest.mark.parametrize("method", PRUNING)
def test_activation_checkpointing(method):
    """L0's gates are the same when the forward pass is computed again."""
    model, pruner = prepared(method)
    expected, gradients = losses(model, pruner, model)
    assert pruner.density < 0.31
    again, pruner = prepared(method, gradient_checkpointing=True)
    found, others = losses(again, pruner, again)
    assert found == expected
    for ours, theirs in zip(others, gradients, strict=True):
        assert torch.equal(ours, theirs)


def test_without_its_random_state_the_gates_would_differ():
    """What the test above would not see if it could not fail."""
    layer = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    pruner = prepare(layer, PruningConfig("l0", targets=["0", "1"], warmup=0, cooldown=1), 2)
    gradients = []
    for preserve in (True, False, None):
        torch.manual_seed(0)
        x = torch.ones(2, 8, requires_grad=True)
        again = {"use_reentrant": False, "preserve_rng_state": preserve}
        y = layer(x) if preserve is None else checkpoint(layer, x, **again)
        gradients.append(torch.autograd.grad(y.sum(), pruner.targets[0].scores)[0])
    assert torch.equal(gradients[0], gradients[2])
    assert not torch.equal(gradients[1], gradients[2])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own doing
@pytest.mark.parametrize("method", PRUNING)
def test_compiled_as_one_graph(method):
    """Masks are refreshed in place, so nothing is compiled again."""
    model, pruner = prepared(method)
    expected, gradients = losses(model, pruner, model)
    other, pruner = prepared(method)
    from torch._dynamo import lookup_backend

    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    found, others = losses(other, pruner, torch.compile(other, backend=count, fullgraph=True))
    assert len(graphs) == 1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(others, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
