"""What cannot be prepared, and what cannot be done to a prepared model."""

import copy

import pytest
import torch
from pruning.blocks import BLOCK_WEIGHTS, TOTAL, blocks, train
from support import PRUNING, tiny_bert
from torch import nn

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning import preparing
from fineprune.pruning.finalizing import DDP_IGNORES, finalize, fold, masked_modules
from fineprune.pruning.preparing import prepare


def test_prepare_twice():
    model = blocks()
    prepare(model, PruningConfig(), TOTAL)
    with pytest.raises(FinepruneError, match="prepared already: finalize it first"):
        prepare(model, PruningConfig(), TOTAL)


def test_finalize_without_prepare():
    model = blocks()
    with pytest.raises(FinepruneError, match="not prepared"):
        finalize(model)
    prepare(model, PruningConfig(density=1.0), TOTAL)
    finalize(model)
    with pytest.raises(FinepruneError, match="finalized already"):
        finalize(model)


def test_what_prepare_refuses_it_leaves_alone():
    model = blocks()
    keys = set(model.state_dict())
    for config, steps, message in [
        (PruningConfig(warmup=10, cooldown=10), 20, "needs at least 21 steps"),
        (PruningConfig(), 0, "total_steps=0"),
        (PruningConfig(targets="nothing"), TOTAL, "no linear layer matches 'nothing'"),
    ]:
        with pytest.raises(FinepruneError, match=message):
            prepare(model, config, steps)
        assert set(model.state_dict()) == keys
        assert model.embedding.weight.requires_grad
    with pytest.raises(FinepruneError, match=r"prepare takes a torch\.nn\.Module"):
        prepare("bert-base-uncased", PruningConfig(), TOTAL)
    with pytest.raises(FinepruneError, match=r"config='movement': give a PruningConfig, such as"):
        prepare(model, "movement", TOTAL)


def everything(model):
    """What `prepare` may change of a model, values apart."""
    return (
        [(name, type(module), set(vars(module))) for name, module in model.named_modules()],
        [(name, id(entry), entry.requires_grad) for name, entry in model.named_parameters()],
        list(model.state_dict()),
        list(getattr(model, DDP_IGNORES, ())),
    )


@pytest.mark.parametrize("method", ["obert", "flow"])
def test_a_first_cut_that_fails_leaves_the_model_alone(method):
    model = blocks()
    before, values = everything(model), copy.deepcopy(model.state_dict())
    with pytest.raises(FinepruneError, match="a cut before the first step has nothing to measure"):
        prepare(model, PruningConfig(method, 0.2, initial_density=0.5, warmup=0), TOTAL)
    assert everything(model) == before
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    prepare(model, PruningConfig(method, 0.2, warmup=1), TOTAL)


@pytest.mark.parametrize("broken", ["Pruner", "freeze_embeddings", "mask_buffers"])
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "movement", "structure": [{"attention": "head", "feed_forward": "neuron"}, "element"]},
        {"method": "smp"},  # which freezes the body
    ],
)
def test_any_error_leaves_the_model_alone(monkeypatch, broken, settings):
    def fail(*_):
        raise MemoryError

    model = tiny_bert()
    setattr(model, DDP_IGNORES, ["mine"])
    model.classifier.bias.requires_grad_(False)
    before = everything(model)
    monkeypatch.setattr(preparing, broken, fail)
    with pytest.raises(MemoryError):
        prepare(model, PruningConfig(density=0.5, **settings), TOTAL)
    assert everything(model) == before
    monkeypatch.undo()
    assert everything(fold(prepare(model, PruningConfig(density=0.5, **settings), TOTAL).model)) == before


def test_the_masks_of_a_model_that_is_prepared_already_stay():
    pruner = prepare(blocks(), PruningConfig(), TOTAL)
    before = everything(pruner.model)
    with pytest.raises(FinepruneError, match="prepared already"):
        prepare(pruner.model, PruningConfig(), TOTAL)
    assert everything(pruner.model) == before


@pytest.mark.parametrize("method", ["magnitude", "movement", "keep_zeros"])
@pytest.mark.parametrize("wrong", [torch.nan, -torch.inf])
def test_weights_that_are_not_finite(method, wrong):
    model = blocks()
    with torch.no_grad():
        model.head.weight[0, 0] = wrong  # no target
        model.blocks[0][0].weight[0, 0] = 0.0
        model.blocks[1][2].weight[2, 3:5] = wrong
    message = r"^blocks\.1\.2: 2 of its 48 weights are nan or infinite, and cannot be ranked: .*exclude$"
    with pytest.raises(FinepruneError, match=message):
        prepare(model, PruningConfig(method), TOTAL)
    prepare(model, PruningConfig(method, exclude="1.2"), TOTAL)


def test_a_weight_shared_with_what_is_not_pruned():
    model = tiny_bert("ForMaskedLM")
    decoder = model.cls.predictions.decoder
    message = (
        r"^cls\.predictions\.decoder: its weight is also bert\.embeddings\.word_embeddings\.weight, which is "
        "not pruned and would get its zeros; leave the layer out with targets or exclude, or untie the two"
    )
    for targets in ("decoder", "*"):
        with pytest.raises(FinepruneError, match=message):
            prepare(model, PruningConfig("magnitude", targets=targets), TOTAL)
    decoder.weight = nn.Parameter(decoder.weight.detach().clone())
    prepare(model, PruningConfig("magnitude", targets="decoder"), TOTAL)


def test_a_weight_shared_with_a_part_that_stays_whole():
    model = blocks(tied=True)  # blocks.1.0 has the weight of blocks.0.0
    with pytest.raises(FinepruneError, match=r"blocks\.0\.0: its weight is also blocks\.1\.0\.weight"):
        prepare(model, PruningConfig(exclude="1.0"), TOTAL)
    prepare(model, PruningConfig(), TOTAL)


def test_a_compiled_model_and_one_without_weights():
    model = blocks()
    with pytest.raises(
        FinepruneError, match=r"is compiled \(torch.compile\); give .* compiled._orig_mod, and"
    ):
        prepare(torch.compile(model, backend="eager"), PruningConfig(), TOTAL)
    with pytest.raises(FinepruneError, match="no weights in memory"):
        prepare(model.to("meta"), PruningConfig(), TOTAL)


def test_a_pruner_is_no_model_and_ends_with_it():
    pruner = prepare(blocks(), PruningConfig(density=1.0), TOTAL)
    tensors = pruner.tensors()
    with pytest.raises(
        FinepruneError, match=r"model=Pruner: finalize takes .*; give it the model, pruner.mo"
    ):
        finalize(pruner)
    finalize(pruner.model)
    for late in (pruner.step, pruner.penalty, lambda: pruner.load_tensors(tensors)):
        with pytest.raises(FinepruneError, match="this pruner's model is finalized: its masks are folded in"):
            late()


def test_quantized_weights():
    model = blocks()
    model.blocks[1][2].weight = nn.Parameter(torch.zeros(6, 8, dtype=torch.int8), requires_grad=False)
    keys = set(model.state_dict())
    with pytest.raises(FinepruneError, match=r"blocks\.1\.2: its weight is no floating-point"):
        prepare(model, PruningConfig(), TOTAL)
    assert set(model.state_dict()) == keys
    assert len(prepare(model, PruningConfig(exclude="1.2"), TOTAL).targets) == 3


def test_weights_of_one_byte():
    model = blocks()
    model.blocks[1][2].weight = nn.Parameter(torch.zeros(6, 8).to(torch.float8_e4m3fn))
    with pytest.raises(FinepruneError, match=r"blocks\.1\.2: its weight is no floating-point"):
        prepare(model, PruningConfig(), TOTAL)


class Wrapped(nn.Parameter):
    """As torchao's and bitsandbytes' weights, which call themselves floats."""


def test_quantized_weights_that_look_like_floats():
    model = blocks()
    model.blocks[1][2].weight = Wrapped(torch.zeros(6, 8))
    with pytest.raises(FinepruneError, match=r"blocks\.1\.2: its weight is no floating-point"):
        prepare(model, PruningConfig(), TOTAL)
    assert len(prepare(model, PruningConfig(exclude="1.2"), TOTAL).targets) == 3


class Bits(nn.Module):
    """A quantized layer, by what it holds."""

    def __init__(self, name):
        super().__init__()
        self.register_buffer(name, torch.zeros(3, 8, dtype=torch.int8))


class Method(nn.Module):
    """As torch's own quantized layers, whose weight is a method."""

    def weight(self):
        return torch.zeros(6, 8)


@pytest.mark.parametrize("layer", [Bits("weight"), Bits("qweight"), Method()])
@pytest.mark.parametrize("targets", [None, "0"])
def test_layers_quantized_by_others(layer, targets):
    model = blocks()
    model.blocks[1][2] = layer
    with pytest.raises(
        FinepruneError, match=rf"^blocks\.1\.2 \({type(layer).__name__}\) is quantized or packed"
    ):
        prepare(model, PruningConfig(targets=targets), TOTAL)
    assert not any(True for _ in masked_modules(model))


def test_a_model_that_says_it_is_quantized():
    model = blocks()
    model.is_quantized = True  # transformers' word
    with pytest.raises(
        FinepruneError, match=r"the model \(Blocks\) is quantized or packed: load it in floating"
    ):
        prepare(model, PruningConfig(), TOTAL)
    model.is_quantized = False
    prepare(model, PruningConfig(), TOTAL)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("method", PRUNING)
def test_a_model_that_is_cast_after_prepare(method, dtype):
    pruner = prepare(blocks(), PruningConfig(method), TOTAL)
    pruner.step()
    pruner.model.to(dtype)
    with pytest.raises(
        FinepruneError, match=rf"blocks\.0\.0: the model was cast to {dtype} after prepare"
    ) as error:
        pruner.step()
    assert "\n" not in str(error.value)
    assert pruner.steps_done == 1


@pytest.mark.parametrize("method", PRUNING)
def test_a_model_that_is_cast_before_prepare(method):
    pruner = prepare(blocks().to(torch.bfloat16), PruningConfig(method, density=0.25), TOTAL)
    assert {target.weight.dtype for target in pruner.targets} == {torch.bfloat16}
    train(pruner, TOTAL)
    assert pruner.density == 0.25


def test_scores_that_are_cast_to_the_type_of_their_weights():
    pruner = prepare(blocks().to(torch.bfloat16), PruningConfig("movement"), TOTAL)
    pruner.model.to(torch.bfloat16)
    with pytest.raises(
        FinepruneError, match=r"cast to torch\.bfloat16 after prepare, and what ranks its weights"
    ):
        pruner.step()


def test_weights_that_become_longer_keep_their_scores():
    pruner = prepare(blocks().to(torch.bfloat16), PruningConfig("movement", density=0.25), TOTAL)
    pruner.model.to(torch.float32)
    train(pruner, TOTAL)
    assert pruner.density == 0.25


@pytest.mark.parametrize("method", PRUNING)
def test_a_model_that_is_cast_when_it_is_trained(method):
    pruner = prepare(blocks(), PruningConfig(method, density=0.25), TOTAL)
    train(pruner, TOTAL)
    pruner.model.to(torch.bfloat16)
    if method == "l0":  # its gates are read off the scores
        with pytest.raises(FinepruneError, match=r"the gates of L0 with it: finalize it first, then cast"):
            finalize(pruner.model)
    else:
        finalize(pruner.model)
        zeros = [int((pruner.model.blocks[i][j].weight == 0).sum()) for i in (0, 1) for j in (0, 2)]
        assert sum(zeros) == 0.75 * BLOCK_WEIGHTS


def test_the_cause_of_nan_in_float16_is_named():
    pruner = prepare(blocks().half(), PruningConfig("magnitude", warmup=0), TOTAL)
    with torch.no_grad():
        pruner.targets[0].weight.fill_(torch.nan)
    with pytest.raises(FinepruneError, match=r"are NaN, because the weights are float16.*torch\.autocast"):
        pruner.step()
