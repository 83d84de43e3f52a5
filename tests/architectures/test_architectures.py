"""Any model: pruned by any method, saved, loaded and run, it gives the same answers."""

import copy
import os
import warnings
from itertools import cycle
from pathlib import Path

import pytest
import torch
from architectures.models import ARCHITECTURES, ENGINE, expanded, labels, make, pruned, pruned_matrices
from architectures.table import page

import fineprune
from fineprune import FinepruneWarning, PruningConfig
from fineprune.inference.encoder_module import EncoderModule
from fineprune.inference.linear_module import SparseLinear
from fineprune.pruning.probe import difference, outputs, probe_inputs
from fineprune_runtime import native

DENSITY = 0.1
STEPS = 20
# Literally the four of the paper: whether masks are ranked in each matrix or in all of them together.
RANKED = {"magnitude": "local", "movement": "local", "soft_movement": "global", "l0": "global"}

whole = [(name, method) for name in ARCHITECTURES for method in RANKED]
thinned = list(zip(ARCHITECTURES, cycle(RANKED), strict=False))


def load(folder, name):
    import transformers

    auto = getattr(transformers, f"AutoModelFor{ARCHITECTURES[name].auto}")
    model = auto.from_pretrained(folder)
    assert type(model).__name__ == ARCHITECTURES[name].kind
    return model


def train(model, pruner, name):
    inputs = probe_inputs(model)
    optimizer = torch.optim.AdamW(pruner.parameter_groups(1e-3))
    model.train()
    torch.manual_seed(1)  # dropout, l0's gates
    for _ in range(STEPS):
        optimizer.zero_grad()
        (model(**inputs, labels=labels(name, inputs)).loss + pruner.penalty()).backward()
        optimizer.step()
        pruner.step()
    model.eval()


@pytest.mark.stress
@pytest.mark.parametrize(("name", "method"), whole if os.environ.get("FINEPRUNE_STRESS") == "1" else thinned)
def test_from_prepare_to_the_same_answers(name, method, tmp_path, same_weights):
    model = make(name)
    inputs = probe_inputs(model)
    dense, before = outputs(model, inputs), copy.deepcopy(model.state_dict())
    pruner = fineprune.prepare(model, PruningConfig(method, DENSITY, warmup=2, cooldown=4), STEPS)
    matrices = pruned_matrices(name)
    assert sorted(target.name for target in pruner.targets) == sorted(matrices)
    sizes = [target.weight.numel() for target in pruner.targets]
    assert sum(sizes) == ARCHITECTURES[name].weights
    train(model, pruner, name)
    kept = sum(round(DENSITY * size) for size in ([sum(sizes)] if RANKED[method] == "global" else sizes))
    assert sum(int(target.masked.kept().sum()) for target in pruner.targets) == kept
    during = outputs(model, inputs)

    fineprune.finalize(model)
    answers = outputs(model, inputs)
    assert difference(during, answers) < 1e-5
    assert difference(dense, answers) > 1e-3
    left = fineprune.summary(model)
    assert (left.kept, left.total) == (kept, ARCHITECTURES[name].weights)
    after = model.state_dict()
    assert {key: value.shape for key, value in after.items()} == {key: v.shape for key, v in before.items()}
    for key, value in after.items():  # nothing else lost a weight
        if key.removesuffix(".weight") not in matrices:
            assert int((value == 0).sum()) <= int((before[key] == 0).sum()), key
    for table in (entry for entry, module in model.named_modules() if isinstance(module, torch.nn.Embedding)):
        assert torch.equal(after[f"{table}.weight"], before[f"{table}.weight"])

    fineprune.save_compact(model, tmp_path / "compact")
    model.save_pretrained(tmp_path / "plain")
    for folder in ("compact", "plain"):
        loaded = load(tmp_path / folder, name)
        assert same_weights(model, loaded)
        assert all(map(torch.equal, answers, outputs(loaded, inputs)))
        for names in ARCHITECTURES[name].tied:
            assert len({loaded.get_parameter(tied).data_ptr() for tied in names}) == 1
        assert str(fineprune.summary(loaded)) == str(left)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_accelerated(name, packed, tmp_path):
    if not native.levels():
        pytest.skip("the engine has no native library here")
    model = pruned(name)
    fast = copy.deepcopy(model)
    if packed:
        fast = fineprune.load(fineprune.save_compact(model, tmp_path / "m").folder, packed=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fineprune.accelerate(fast)
    encoders = sum(isinstance(module, EncoderModule) for module in fast.modules())
    layers = sum(isinstance(module, SparseLinear) for module in fast.modules())
    engine = ENGINE[0 if encoders else 1 if layers else 2]
    assert engine == ARCHITECTURES[name].engine
    matrices = len(pruned_matrices(name))
    assert (encoders, layers) == {"whole": (1, 0), "layer by layer": (0, matrices), "no": (0, 0)}[engine]
    assert [entry.category for entry in said] == ([] if engine == "whole" else [FinepruneWarning])
    if engine == "layer by layer":
        assert f"run one by one, {matrices} of them" in str(said[0].message)
    if engine == "no":
        assert f"{matrices} stay dense" in str(said[0].message)
    inputs = probe_inputs(model)
    mask = inputs.get("attention_mask")
    ours, theirs = outputs(model, inputs), outputs(fast, inputs)
    if mask is not None and not model.config.is_encoder_decoder:  # the engine answers nothing to padding
        ours, theirs = (
            [entry[mask == 1] if entry.shape[:2] == mask.shape else entry for entry in found]
            for found in (ours, theirs)
        )
    assert difference(ours, theirs) < 1e-4


@pytest.mark.parametrize("name", [name for name, entry in ARCHITECTURES.items() if entry.tied])
def test_what_is_tied(name):
    model = make(name)
    for names in ARCHITECTURES[name].tied:
        assert len({id(model.get_parameter(tied)) for tied in names}) == 1


def test_the_thinned_cases():
    assert {name for name, _ in thinned} == set(ARCHITECTURES)
    assert {method for _, method in thinned} == set(RANKED)
    assert set(thinned) < set(whole)
    assert len(whole) == len(ARCHITECTURES) * 4


def test_names_by_hand():
    assert expanded("a.{0,1}.{q,k}_proj") == ["a.0.q_proj", "a.0.k_proj", "a.1.q_proj", "a.1.k_proj"]
    assert expanded("a.b") == ["a.b"]
    assert pruned_matrices("PoolFormer")[:2] == [
        f"poolformer.encoder.block.0.0.output.conv{n}" for n in (1, 2)
    ]
    assert len(pruned_matrices("T5")) == 2 * (4 + 2 + 4 + 4 + 2)


def test_the_page_is_what_the_command_writes():
    committed = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
    assert committed.read_text(encoding="utf-8") == page(), (
        "run: python tests/architectures/table.py > docs/architectures.md"
    )
