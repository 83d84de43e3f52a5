"""`calibrate` on whole models: order, inputs, padding, exact densities, and what it refuses."""

import copy

import pytest
import torch
from architectures.models import make
from pruning.blocks import BLOCK_WEIGHTS, blocks
from support import tiny_bert
from torch import nn

import fineprune
from fineprune import FinepruneError, FinepruneWarning, PruningConfig, calibrate, finalize, prepare
from fineprune.pruning.calibration.calibrate import CUTS
from fineprune.pruning.calibration.moments import present
from fineprune.pruning.calibration.passes import Passes
from fineprune.pruning.probe import probe_inputs
from fineprune.pruning.targets import find_targets, repeated_blocks


def tokens(rows=40, length=5, seed=0):
    return torch.randint(0, 7, (rows, length), generator=torch.Generator().manual_seed(seed))


def texts(model, count=4, length=12):
    """Batches of two padded texts."""
    return [probe_inputs(model, length, seed) for seed in range(count)]


@pytest.mark.parametrize("name", CUTS)
def test_each_matrix_keeps_its_share(name):
    model = blocks()
    done = calibrate(model, [tokens()], density=0.3, method=name)
    assert [(matrix.kept, matrix.total) for matrix in done.matrices] == [(14, 48)] * 4  # 0.3 * 48 = 14.4
    assert done.density == fineprune.summary(model).density == 56 / BLOCK_WEIGHTS
    assert done.tokens == 40
    assert done.method == name


def test_the_table():
    lines = str(calibrate(blocks(), [tokens()], density=0.5, method="wanda")).splitlines()
    assert lines[0].split() == ["matrix", "shape", "kept", "of", "density", "error"]
    assert lines[1].split()[:7] == ["blocks.0.0", "8", "x", "6", "24", "48", "50.00%"]
    assert lines[5].split()[:4] == ["all", "96", "192", "50.00%"]
    assert lines[6].startswith("wanda, on 40 tokens, in ")


def test_inputs_come_from_what_was_cut_before():
    """The first matrix is cut to 1 of 48: the second then reads a constant, but for one neuron."""
    model, seen = blocks(), {}
    cut = CUTS["magnitude"]

    def keep(layer, count):
        seen[layer.name] = layer.gram
        return cut(layer, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CUTS, "magnitude", keep)
        calibrate(model, [tokens()], density=0.02, method="magnitude")
    assert list(seen) == ["blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2"]
    assert int(torch.linalg.matrix_rank(seen["blocks.0.0"], rtol=1e-5)) == 6
    assert int(torch.linalg.matrix_rank(seen["blocks.0.2"], rtol=1e-5)) == 2


def test_nothing_else_of_the_model_changes():
    model = tiny_bert().train()
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(FinepruneWarning, match="tokens for matrices of up to 32 inputs"):
        calibrate(model, texts(model, 2), density=0.5, method="sparsegpt")
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{name}.weight" for name in find_targets(model)}
    assert all(part.training for part in model.modules())
    assert not any("forward" in vars(part) for part in model.modules())
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())


@pytest.mark.filterwarnings("ignore:.*tokens for matrices:fineprune.FinepruneWarning")
def test_padding_is_left_out():
    """Other words where padding is leave the same cut."""
    one, other = tiny_bert(), tiny_bert()
    batches = texts(one)
    changed = [dict(batch) for batch in batches]
    for batch in changed:
        batch["input_ids"] = torch.where(batch["attention_mask"] == 0, 3, batch["input_ids"])
    done = calibrate(one, batches)
    again = calibrate(other, changed)
    assert done.tokens == again.tokens == 4 * (12 + 6)
    for name in find_targets(one):
        torch.testing.assert_close(one.get_submodule(name).weight, other.get_submodule(name).weight)


def test_padding_of_two_stacks():
    """The decoder has its own mask, but for the attention that reads the encoder."""
    here, there = torch.tensor([[1, 0]]), torch.tensor([[0, 1]])
    batch = {"attention_mask": here, "decoder_attention_mask": there}
    decoder = "model.decoder.layers.0."
    assert present("model.encoder.layers.0.fc1", batch, True).tolist() == [[True, False]]
    for name in ("self_attn.k_proj", "encoder_attn.q_proj", "fc1"):
        assert present(decoder + name, batch, True).tolist() == [[False, True]]
    assert present(decoder + "encoder_attn.k_proj", batch, True).tolist() == [[True, False]]
    assert present(decoder + "fc1", {"labels": torch.tensor([[5, -100]])}, True).tolist() == [[True, False]]
    assert present(decoder + "fc1", batch, False).tolist() == [[True, False]]  # OPT's only one
    assert present(decoder + "fc1", (here,), True) is None


@pytest.mark.filterwarnings("ignore:.*tokens for matrices:fineprune.FinepruneWarning")
@pytest.mark.parametrize("name", ["ALBERT", "BART", "GPT-2", "T5", "ModernBERT", "Llama", "PoolFormer"])
def test_finished_blocks_give_what_they_gave(name):
    """The same cut whether finished blocks are computed again or not."""
    one = make(name)
    other = copy.deepcopy(one)
    batches = [probe_inputs(one, seed=seed) for seed in range(3)]
    done = calibrate(one, batches, method="wanda")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Passes, "_can_replay", lambda passes: False)
        calibrate(other, batches, method="wanda")
    for matrix in done.matrices:
        assert matrix.kept == round(matrix.total / 2)
        assert torch.equal(
            one.get_parameter(f"{matrix.name}.weight"), other.get_parameter(f"{matrix.name}.weight")
        )


@pytest.mark.parametrize(
    ("name", "replays"), [("BERT", True), ("BART", True), ("T5", True), ("ALBERT", False)]
)
def test_which_models_replay(name, replays):
    model = make(name)
    assert (
        Passes(model, [probe_inputs(model)], find_targets(model), repeated_blocks(model))._replays == replays
    )


def test_layers_that_share_a_weight_are_cut_once_by_both_inputs():
    model = blocks(tied=True)
    done = calibrate(model, [tokens()], density=0.5, method="alps")
    assert [matrix.name for matrix in done.matrices] == ["blocks.0.0", "blocks.0.2", "blocks.1.2"]
    assert done.tokens == 80
    assert model.blocks[0][0].weight is model.blocks[1][0].weight


def test_batches_may_be_mappings_tuples_and_tensors():
    one, other = blocks(), blocks()
    calibrate(one, [{"tokens": tokens()}], method="wanda")
    calibrate(other, [(tokens(),)], method="wanda")
    assert torch.equal(one.blocks[1][2].weight, other.blocks[1][2].weight)


def test_the_mask_of_a_tuple_is_known_by_its_place():
    one, other = tiny_bert(), tiny_bert()
    batches = texts(one)
    tuples = [(batch["input_ids"], batch["attention_mask"]) for batch in batches]
    assert calibrate(one, batches).tokens == calibrate(other, tuples).tokens == 4 * (12 + 6)
    for name in find_targets(one):
        assert torch.equal(one.get_submodule(name).weight, other.get_submodule(name).weight)


def test_half_precision_stays():
    model = blocks().bfloat16()
    done = calibrate(model, [tokens()], method="alps")
    assert model.blocks[0][0].weight.dtype == torch.bfloat16
    assert done.density == 0.5


def test_exclude_leaves_matrices_whole():
    done = calibrate(blocks(), [tokens()], method="wanda", exclude=["blocks.1.*"])
    assert [matrix.name for matrix in done.matrices] == ["blocks.0.0", "blocks.0.2"]


class Lazy(nn.Module):
    """Has a block that is never called."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2))

    def forward(self, values):
        return self.blocks[0](values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.0}, r"density=0\.0: the share of weights that remain must lie in \(0, 1\]"),
        ({"density": 1.5}, r"density=1\.5: "),
        ({"method": "wandas"}, "method='wandas': did you mean wanda"),
        ({"targets": ["quer"]}, "targets: no linear layer matches 'quer'"),
        ({"batches": []}, "batches: there are none"),
        ({"batches": ["text"]}, "batches: one is a str"),
        ({"batches": [{"token": 1}]}, r"batches: Blocks does not take batch 0 \(.*token"),
    ],
)
def test_refused(settings, message):
    model = blocks()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FinepruneError, match=message):
        calibrate(model, **({"batches": [tokens()]} | settings))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_models_that_are_refused():
    with pytest.raises(FinepruneError, match=r"blocks\.1\.0', 'blocks\.1\.1': no batch reaches them"):
        calibrate(Lazy(), [torch.ones(1, 2)])
    model = blocks()
    with pytest.raises(FinepruneError, match="calibrate takes a torch"):
        calibrate("bert", [tokens()])
    calibrate(model, [tokens()], density=0.3)
    with pytest.raises(FinepruneError, match=r"density=0\.5: only 29\.17% of the weights are there"):
        calibrate(model, [tokens()], density=0.5)
    pruner = prepare(blocks(), PruningConfig(density=0.5, warmup=0, cooldown=0), 1)
    with pytest.raises(FinepruneError, match="prepared for a training: finalize it first"):
        calibrate(pruner.model, [tokens()])
    pruner.step()
    finalize(pruner.model)
    calibrate(pruner.model, [tokens()], density=0.25)


def test_values_that_are_not_finite_leave_the_model_as_it_was():
    model = blocks()
    before = copy.deepcopy(model.state_dict())
    cut = CUTS["wanda"]

    def break_the_second(layer, keep):
        if layer.name == "blocks.0.2":
            model.embedding.weight.data.fill_(float("nan"))
        return cut(layer, keep)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CUTS, "wanda", break_the_second)
        with pytest.raises(FinepruneError, match=r"blocks\.1\.0: what it reads .* is nan or infinite"):
            calibrate(model, [tokens()], method="wanda")
    assert torch.equal(model.blocks[0][0].weight, before["blocks.0.0.weight"])


def test_more_refused():
    grouped = nn.Sequential(*(nn.Sequential(nn.Conv1d(4, 4, 1, groups=2), nn.Linear(3, 3)) for _ in range(2)))
    with pytest.raises(FinepruneError, match=r"0\.0: a convolution in groups"):
        calibrate(grouped, [torch.ones(2, 4, 3)])
    quantized = blocks()
    quantized.is_quantized = True
    with pytest.raises(FinepruneError, match="is quantized or packed"):
        calibrate(quantized, [tokens()])


def test_one_batch_and_a_compiled_model():
    model = tiny_bert()
    (batch,) = texts(model, 1)
    for given in (batch, batch["input_ids"]):
        with pytest.raises(FinepruneError, match=r"is one batch; give a list of batches: \[batch\]"):
            calibrate(model, given)
    with pytest.raises(FinepruneError, match=r"compiled \(torch.compile\)"):
        calibrate(torch.compile(model, backend="eager"), [batch])
