"""Accelerated models under what records or compiles a forward pass."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import fineprune
from fineprune import FinepruneError

pytestmark = pytest.mark.usefixtures("engine")


@pytest.mark.parametrize("name", ["bert", "albert"])
@pytest.mark.filterwarnings("ignore")  # of tracing, which says more than once that it may be wrong
def test_a_trace_is_refused(name, make, texts):
    model, inputs = fineprune.accelerate(make(name)).eval(), texts(1, 4)
    ids = inputs["input_ids"]
    for record in (
        lambda: torch.jit.trace(model, example_kwarg_inputs=dict(inputs), strict=False),
        lambda: torch.jit.trace_module(model, {"forward": ids}, strict=False),
        lambda: make_fx(lambda given: model(given).logits)(ids),
        lambda: torch.export.export(model, (ids,)),
    ):
        with pytest.raises(FinepruneError, match="cannot be traced"), torch.no_grad():
            record()


@pytest.mark.filterwarnings("ignore::fineprune.FinepruneWarning", "ignore:Dynamo does not know:UserWarning")
def test_a_compiled_model_answers_every_input():  # takes 4 s: no compilation is shorter
    torch.manual_seed(0)
    layer = nn.Linear(16, 4)
    with torch.no_grad():
        layer.weight[:, 4:] = 0
    model = fineprune.accelerate(nn.Sequential(layer, nn.ReLU()))
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        for inputs in (torch.randn(2, 16), torch.randn(2, 16), torch.randn(5, 16)):
            assert torch.equal(compiled(inputs), model(inputs))
