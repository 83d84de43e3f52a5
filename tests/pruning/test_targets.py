"""Which matrices are found in a BERT, and in plain torch. Of others: tests/architectures."""

import pytest
from support import tiny_bert
from torch import nn

from fineprune.errors import FinepruneError
from fineprune.pruning.costs import costs
from fineprune.pruning.summary import summary
from fineprune.pruning.targets import find_targets, is_linear, is_pointwise, is_transposed, refuse_shared


@pytest.mark.parametrize("function", [summary, costs])
def test_what_is_no_model(function):
    with pytest.raises(FinepruneError, match=f"model=str: {function.__name__} takes a torch.nn.Module$"):
        function("bert")


def test_the_models_order_and_its_own_modules():
    model = tiny_bert("Model")
    found = find_targets(model)
    assert list(found) == [name for name, _ in model.named_modules() if name in found]
    assert all(model.get_submodule(name) is module for name, module in found.items())


def test_conv1d_counts_as_linear():
    from transformers.pytorch_utils import Conv1D

    assert is_linear(Conv1D(4, 8))
    assert is_linear(nn.Linear(4, 8))
    assert not is_linear(nn.Embedding(4, 8))
    found = [Conv1D(4, 8), nn.Linear(4, 8), nn.Conv1d(4, 8, 1)]
    assert [is_transposed(module) for module in found] == [True, False, False]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Conv1d(4, 8, 1), True),
        (nn.Conv1d(4, 8, 1, groups=2), True),
        (nn.Conv2d(4, 8, 1), True),
        (nn.Conv3d(4, 8, 1, stride=2), True),
        (nn.Conv1d(4, 8, 3), False),
        (nn.Conv2d(4, 8, (1, 2)), False),
        (nn.Conv1d(4, 4, 1, groups=4), False),  # a factor for each channel
        (nn.Conv1d(4, 8, 1, groups=4), False),
        (nn.ConvTranspose1d(4, 8, 1), False),
    ],
)
def test_convolutions_of_kernel_size_1_count_as_linear(module, expected):
    assert is_linear(module) is expected
    assert is_pointwise(module) is expected


def test_a_block_of_convolutions():
    model = nn.ModuleList(
        nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1))
        for _ in range(2)
    )
    assert list(find_targets(model)) == ["0.1", "0.3", "1.1", "1.3"]


def block():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))


class Blocks(nn.Module):
    def __init__(self, count=2, container=nn.ModuleList):
        super().__init__()
        blocks = [block() for _ in range(count)]
        self.first = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(blocks) if container is nn.ModuleList else nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


@pytest.mark.parametrize("container", [nn.ModuleList, nn.Sequential])
def test_any_model_of_repeated_blocks(container):
    found = find_targets(Blocks(container=container))
    assert list(found) == ["blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2"]


def test_one_block_is_enough_in_a_list_only():
    assert list(find_targets(Blocks(1))) == ["blocks.0.0", "blocks.0.2"]
    with pytest.raises(FinepruneError, match="no linear layers inside repeated blocks"):
        find_targets(Blocks(1, nn.Sequential))


def test_a_list_of_single_layers_or_of_different_modules_is_no_repetition():
    model = Blocks()
    model.heads = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))  # a layer each
    model.parts = nn.ModuleList([block(), nn.TransformerEncoderLayer(4, 1, 8)])  # of two classes
    assert {name.split(".")[0] for name in find_targets(model)} == {"blocks"}


def test_a_model_without_blocks_says_which_layers_it_has():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(
        FinepruneError, match=r"Sequential has no linear .* targets=\[\.\.\.\] \(its linear layers: 0, 2\)"
    ):
        find_targets(model)
    with pytest.raises(FinepruneError, match="its linear layers: none"):
        find_targets(nn.ReLU())
    assert list(find_targets(model, ["2"])) == ["2"]


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        (["query"], 2),
        (["query", "key"], 4),
        (["attention.*"], 8),
        (["layer.0.*"], 6),
        (["encoder.layer.1.output.dense"], 1),
        (["output.dense"], 4),  # the attention's and the block's
        (["intermediate.den?e"], 2),
        (["classifier"], 1),  # a pattern reaches outside the blocks
        (["*"], 14),  # twelve, the pooler and the classifier
        (["query", "self.query"], 2),  # once each
    ],
)
def test_patterns_match_dotted_ends(targets, count):
    model = tiny_bert()
    assert len(find_targets(model, targets)) == count


def test_a_pattern_matches_whole_parts_of_a_name():
    model = tiny_bert("Model")
    for pattern in ("uery", "embeddings", "LayerNorm"):
        with pytest.raises(FinepruneError, match=f"targets: no linear layer matches '{pattern}'"):
            find_targets(model, [pattern])


@pytest.mark.parametrize(
    ("pattern", "near"), [("qurey", "query"), ("attention.self.kye", "key"), ("dence", "dense")]
)
def test_near_names(pattern, near):
    with pytest.raises(FinepruneError, match=rf"matches '{pattern}'; near names: .*\b{near}\b"):
        find_targets(tiny_bert("Model"), ["value", pattern])


def test_a_weight_that_another_module_has_too():
    model = Blocks()
    model.blocks[1][0].weight = model.blocks[0][0].weight
    model.blocks[1][2] = model.blocks[0][2]  # one module in two places
    names = ["blocks.0.0", "blocks.0.2", "blocks.1.0"]
    refuse_shared(model, names)
    refuse_shared(model, ["blocks.0.2"])
    for name, other in ((names[0], names[2]), (names[2], names[0])):
        with pytest.raises(
            FinepruneError,
            match=rf"{name}: its weight is also {other}\.weight, which is not .*; choose both, ",
        ):
            refuse_shared(model, [name])
    model.table = nn.Embedding(8, 4)
    model.blocks[0][0].weight = model.blocks[1][0].weight = model.table.weight
    with pytest.raises(
        FinepruneError, match=r"0: its weight is also table\.weight, .* zeros; leave the layer"
    ):
        refuse_shared(model, names)


def test_exclude():
    model = tiny_bert("Model")
    assert len(find_targets(model, exclude=["query"])) == 10
    assert len(find_targets(model, ["query", "key"], ["layer.0.*"])) == 2
    with pytest.raises(FinepruneError, match=r"exclude: no linear layer matches 'pooler\.dense'"):
        find_targets(model, exclude=["pooler.dense"])  # outside the targets
    with pytest.raises(FinepruneError, match=r"exclude=\['\*'\] leaves nothing to prune"):
        find_targets(model, exclude=["*"])
