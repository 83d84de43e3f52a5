"""Two thin layers in the place of one."""

import copy

import pytest
import torch
from architectures.models import make
from support import tiny_bert
from torch import nn

from fineprune import FinepruneError, PruningConfig, accelerate, finalize, load, prepare, save_compact
from fineprune.pruning.low_rank import LowRankLinear, factorize, is_low_rank, multiply_out
from fineprune.pruning.probe import difference, outputs, probe_inputs


def blocks(*matrices):
    """A model of one block for each group of matrices (out, in)."""
    layers = []
    for group in matrices:
        made = nn.Sequential()
        for matrix in group:
            linear = nn.Linear(len(matrix[0]), len(matrix))
            linear.weight.data = torch.tensor(matrix)
            made.append(linear)
        layers.append(made)
    return nn.Sequential(nn.ModuleList(layers))


def pair_of(model, name):
    first, second = model.get_submodule(name)
    return first, second


def test_the_best_product_of_a_rank():
    # 4 · (0.6, 0.8)ᵀ (1, 0), and 2 · (-0.8, 0.6)ᵀ (0, 1), for which rank ⌊2·2/(1·4)⌋ = 1 has no place.
    matrix = [[2.4, -1.6], [3.2, 1.2]]
    model = blocks(*[[matrix, matrix]] * 2)
    bias = model[0][0][0].bias
    done = factorize(model, 1)
    first, second = pair_of(model, "0.0.0")
    assert torch.allclose(second.weight @ first.weight, torch.tensor([[2.4, 0], [3.2, 0]]), atol=1e-6)
    assert torch.allclose(first.weight.abs(), torch.tensor([[2.0, 0]]), atol=1e-6)  # √4 on both sides
    assert first.bias is None
    assert second.bias is bias
    made = done.layers["0.0.0"]
    assert (made.inputs, made.outputs, made.rank, made.sizes) == (2, 2, 1, (4, 4))
    assert made.error == pytest.approx(2 / 20**0.5)
    assert done.share == 1
    assert str(done) == (
        "4 linear layers are two thin ones each, of rank 1, with 100.0% of their weights; the products "
        "differ by 45% to 45%"
    )


@pytest.mark.parametrize(("compression", "rank"), [(3, 128), (1.5, 256), (1, 384)])
def test_ranks_of_the_paper(compression, rank):
    """768 x 768 at c = 3 has rank 128, as published."""
    model = blocks(*[[[[0.1] * 768] * 768] * 2] * 2)
    assert {made.rank for made in factorize(model, compression, targets=["0.0.0"]).layers.values()} == {rank}


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "T5", "ViT", "Llama", "MPNet"])
def test_a_full_product_answers_as_before(name):
    """Where no matrix has a higher rank than its thin ones, nothing is lost, also by multiplying out."""
    model = make(name)
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 2 and not isinstance(module, nn.Embedding):
            left, sizes, right = torch.linalg.svd(weight.data, full_matrices=False)
            weight.data = left[:, :2] * sizes[:2] @ right[:2]
    before = copy.deepcopy(model)
    done = factorize(model, 1)
    assert is_low_rank(model)
    assert max(made.error for made in done.layers.values()) < 1e-5
    inputs = probe_inputs(model)
    assert difference(outputs(before, inputs), outputs(model, inputs)) < 1e-4
    thin = outputs(model, inputs)
    multiply_out(model)
    assert not is_low_rank(model)
    assert difference(thin, outputs(model, inputs)) < 1e-5


def test_it_trains_and_its_thin_matrices_can_be_pruned():
    model = tiny_bert()
    factorize(model, 1.5)
    pruner = prepare(model, PruningConfig("magnitude", 0.5, warmup=0, cooldown=0), total_steps=1)
    assert "bert.encoder.layer.0.attention.self.query.1" in [target.name for target in pruner.targets]
    ids = torch.arange(1, 9)[None]
    model(input_ids=ids, labels=torch.tensor([1])).loss.backward()
    for target in pruner.targets:
        assert target.module.parametrizations.weight.original.grad.abs().sum() > 0
    pruner.step()
    finalize(model)
    for part in pair_of(model, "bert.encoder.layer.0.attention.self.query"):
        assert int((part.weight == 0).sum()) * 2 == part.weight.numel()


def test_the_engine_multiplies_out_what_is_dense():
    model = tiny_bert().eval()
    factorize(model, 1.2)
    ids = torch.arange(1, 9)[None]
    expected = model(input_ids=ids).logits
    accelerate(model)  # without a warning
    assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-5)
    assert not is_low_rank(model)


def test_the_engine_unpacks_pairs_that_are_packed(tmp_path):
    model = tiny_bert().eval()
    factorize(model, 1.2)
    save_compact(model, tmp_path, values="int8")
    ids = torch.arange(1, 9)[None]
    expected = load(tmp_path)(input_ids=ids).logits
    packed = accelerate(load(tmp_path, packed=True))
    assert torch.allclose(packed(input_ids=ids).logits, expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*does not run model_type 'gpt2' whole.*")
def test_thin_layers_stay_where_the_engine_runs_no_whole_model():
    model = make("GPT-2")
    factorize(model, 1.5)
    accelerate(model)
    assert is_low_rank(model)


@pytest.mark.filterwarnings("ignore:.*LowRankLinear, which the engine does not know.*")
def test_the_engine_runs_pruned_pairs_one_by_one():
    model = tiny_bert().eval()
    factorize(model, 1.2)
    for pair in [module for module in model.modules() if isinstance(module, LowRankLinear)]:
        for part in pair:
            part.weight.data[:, ::2] = 0
    ids = torch.arange(1, 9)[None]
    expected = model(input_ids=ids).logits
    accelerate(model)
    assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-5)


@pytest.mark.parametrize("compression", [0.5, 0, -1, float("nan"), float("inf"), "3", None, True])
def test_compressions_that_cannot_be(compression):
    with pytest.raises(FinepruneError, match=r"^compression=.*: expected a number of at least 1, such as 3"):
        factorize(tiny_bert(), compression)


def without(change, message):
    return pytest.param(change, message, id=change.__name__)


def pruned(model):
    model.bert.encoder.layer[0].intermediate.dense.weight.data[::2] = 0


def prepared(model):
    prepare(model, PruningConfig("magnitude", 0.5), total_steps=9)


def shared(model):
    model.bert.encoder.layer[1].output.dense = model.bert.encoder.layer[0].output.dense


def diverged(model):
    model.bert.encoder.layer[1].output.dense.weight.data[0, 0] = float("nan")


def special(model):
    class Special(nn.Linear):
        pass

    model.bert.encoder.layer[1].output.dense.__class__ = Special


def twice(model):
    factorize(model, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        without(
            pruned, "layer.0.intermediate.dense: is pruned, .* weights are 0, which thin matrices would fill"
        ),
        without(prepared, "is being pruned; factorize first, or finalize"),
        without(shared, "layer.0.output.dense: is in several places of the model"),
        without(diverged, "layer.1.output.dense.weight: 1 of its .* values are nan"),
        without(special, "layer.1.output.dense: is a Special in a BertOutput; only an nn.Linear"),
        without(twice, "the model has thin layers already"),
    ],
)
def test_models_that_are_refused(change, message):
    model = tiny_bert()
    change(model)
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(FinepruneError, match=message):
        factorize(model, 2)
    assert [name for name, _ in model.named_modules()] == before  # nothing is half done


def test_a_matrix_that_is_too_small_for_a_compression():
    with pytest.raises(FinepruneError, match=r"^compression=99: leaves no rank of .* \(16 x 16\); at most 8"):
        factorize(tiny_bert(), 99)


def test_heads_of_a_low_rank_model_cannot_be_pruned():
    model = tiny_bert()
    factorize(model, 2)
    with pytest.raises(FinepruneError, match="none of the 24 chosen matrices is in the attention of a block"):
        prepare(model, PruningConfig("magnitude", 0.5, structure={"attention": "head"}), total_steps=9)
