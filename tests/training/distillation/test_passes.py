"""The forward passes of a module in a block."""

import torch
from torch import nn

from fineprune.training.distillation.passes import Recorder


class Double(nn.Module):
    def forward(self, values):
        return values * 2


def test_passes_with_gradients_are_collected_also_of_callers_that_skip_call():
    module = Double()
    recorder = Recorder(module)
    one = torch.ones(1, requires_grad=True)
    with recorder.recording():
        module(values=one)
        module.forward(values=one * 3)
        with torch.no_grad():
            module(values=one)
    module(values=one)
    passes = recorder.take()
    assert [float(entry.outputs.detach()) for entry in passes] == [2.0, 6.0]
    assert [float(entry.inputs["values"].detach()) for entry in passes] == [1.0, 3.0]
    assert recorder.take() == []
    assert "forward" not in vars(module)


def test_a_forward_pass_of_others_stays_in_its_place():
    module = Double()
    module.forward = own = lambda values: values * 5  # as of accelerate
    recorder = Recorder(module)
    with recorder.recording():
        assert float(module(values=torch.ones(1, requires_grad=True)).detach()) == 5.0
    assert module.forward is own
    assert len(recorder.take()) == 1
