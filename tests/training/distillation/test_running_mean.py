import torch

from fineprune.training.distillation.running_mean import RunningMean


def test_the_mean_since_the_last_call():
    mean = RunningMean()
    assert mean.take() is None
    assert mean.sums() is None
    for value in (1.0, 2.0, 6.0):
        mean.add(torch.tensor(value, requires_grad=True))
    assert mean.take() == 3.0
    assert mean.take() is None


def test_a_sum_goes_on_to_the_bit():
    whole, first, second = RunningMean(), RunningMean(), RunningMean()
    values = torch.rand(7, generator=torch.Generator().manual_seed(0))
    for value in values:
        whole.add(value)
    for value in values[:3]:
        first.add(value)
    second.go_on(*first.sums())
    for value in values[3:]:
        second.add(value)
    assert second.take() == whole.take()
