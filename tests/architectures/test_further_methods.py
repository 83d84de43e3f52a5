"""The methods that are not the paper's, on a decoder and on a vision transformer."""

import pytest
import torch
from architectures.models import labels, make

import fineprune
from fineprune import PruningConfig
from fineprune.pruning.probe import difference, outputs, probe_inputs

WINDOWS = {"mask_interval": 2, "options": {"window": 2}}
SETTINGS = {
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
        model(**inputs, labels=labels(name, inputs)).loss.backward()
        optimizer.step()
        pruner.step()
    assert pruner.density == pytest.approx(0.3, abs=0.001)
    model.eval()
    during = outputs(model, inputs)
    fineprune.finalize(model)
    assert set(model.state_dict()) == keys
    assert fineprune.summary(model).density == pytest.approx(0.3, abs=0.001)
    assert difference(during, outputs(model, inputs)) < 1e-5
