"""Every method, on a decoder and on a vision transformer."""

import pytest
import torch
from architectures.models import labels, make

import fineprune
from fineprune import PruningConfig
from fineprune.config import METHODS
from fineprune.pruning.calibration.calibrate import CUTS
from fineprune.pruning.probe import difference, outputs, probe_inputs

WINDOWS = {"mask_interval": 2, "options": {"window": 2}}
SETTINGS = {
    "magnitude": {},
    "l0": {},
    "movement": {},
    "soft_movement": {},
    "platon": WINDOWS,
    "pins": WINDOWS,
    "fisher": {},
    "admm": {"options": {"interval": 2}},
    "st3": {},
    "pdp": {},
    "powerprop": {},
    "proximal": {},
    "obert": {"options": {"block": 8, "recompute": 2}},
    "flow": {"options": {"measure": "norm_preservation"}},
    "grain": {},
    "smp": {},
}
STEPS = 8


@pytest.mark.parametrize("name", ["GPT-2", "ViT"])
@pytest.mark.parametrize("method", SETTINGS)
def test_a_run_on_another_kind_of_model(name, method):
    model = make(name)
    inputs = probe_inputs(model)
    keys = set(model.state_dict())
    config = PruningConfig(method, 0.3, warmup=2, cooldown=2, **SETTINGS[method])
    pruner = fineprune.prepare(model, config, STEPS)
    optimizer = pruner.optimizer(torch.optim.AdamW, 1e-3)
    if pruner.measures:
        pruner.measure_on(lambda: [model(**inputs, labels=labels(name, inputs)).loss])
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        (model(**inputs, labels=labels(name, inputs)).loss + pruner.penalty()).backward()
        optimizer.step()
        pruner.step()
    assert pruner.density == pytest.approx(0.3, abs=0.001)
    model.eval()
    during = outputs(model, inputs)
    fineprune.finalize(model)
    assert set(model.state_dict()) == keys
    assert fineprune.summary(model).density == pytest.approx(0.3, abs=0.001)
    assert difference(during, outputs(model, inputs)) < 1e-5


@pytest.mark.parametrize("name", ["GPT-2", "ViT"])
@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_without_labels_and_a_run_that_keeps_its_zeros(name, cut):
    model = make(name)
    inputs = probe_inputs(model)
    fineprune.calibrate(model, [inputs] * 8, 0.5, cut)  # as few tokens as it takes without a warning
    assert fineprune.summary(model).density == pytest.approx(0.5, abs=0.02)
    zeros = {key: value == 0 for key, value in model.state_dict().items()}
    pruner = fineprune.prepare(model, PruningConfig("keep_zeros"), 2)
    optimizer = pruner.optimizer(torch.optim.AdamW, 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        (model(**inputs, labels=labels(name, inputs)).loss + pruner.penalty()).backward()
        optimizer.step()
        pruner.step()
    pruned = [target.name for target in pruner.targets]
    fineprune.finalize(model)
    after = model.state_dict()
    assert all((after[f"{key}.weight"][zeros[f"{key}.weight"]] == 0).all() for key in pruned)


def test_every_method_is_tried():
    assert {*SETTINGS, "keep_zeros"} == set(METHODS)
