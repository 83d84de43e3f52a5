import pytest
import torch
from torch import nn

from fineprune import PruningConfig, Summary, finalize, prepare, summary
from fineprune.errors import FinepruneError


class Blocks(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 4)) for _ in range(2))
        self.head = nn.Linear(4, 3)
        if tied:
            self.blocks[1][0].weight = self.blocks[0][0].weight


# 40 of the embedding, 2 * (4*5 + 5 + 5*4 + 4) of the blocks, 4*3 + 3 of the head
PARAMETERS = 40 + 98 + 15


def pruned(method="magnitude", **options):
    pruner = prepare(Blocks(**options), PruningConfig(method, density=0.25, warmup=0, cooldown=1), 2)
    pruner.step()
    return pruner


@pytest.mark.parametrize("method", ["magnitude", "movement", "soft_movement", "l0"])
def test_before_and_after_finalize_alike(method):
    pruner = pruned(method)
    counted = summary(pruner.model)
    assert isinstance(counted, Summary)
    assert (counted.kept, counted.total, counted.density) == (20, 80, 0.25)
    assert counted.density == pruner.density
    assert counted.parameters == PARAMETERS  # scores are none of them
    assert [layer.name for layer in counted.layers] == [
        "blocks.0.0",
        "blocks.0.1",
        "blocks.1.0",
        "blocks.1.1",
    ]
    assert [layer.shape for layer in counted.layers] == [(5, 4), (4, 5)] * 2
    assert sum(layer.kept for layer in counted.layers) == 20
    for layer, target in zip(counted.layers, pruner.targets, strict=True):
        assert layer.kept == int(target.masked.kept().sum())
        assert layer.density == layer.kept / 20
    assert summary(finalize(pruner.model)) == counted


def test_local_pruning_keeps_the_same_share_of_each():
    assert [layer.kept for layer in summary(pruned().model).layers] == [5] * 4


def test_a_dense_model():
    counted = summary(Blocks())
    assert (counted.kept, counted.total, counted.parameters) == (80, 80, PARAMETERS)


def test_closed_gates_are_pruned():
    config = PruningConfig("l0", penalty=1.0, warmup=0, cooldown=0, score_init="zero")
    pruner = prepare(Blocks(), config, 2)
    assert summary(pruner.model).kept == 80
    with torch.no_grad():
        pruner.targets[1].scores[0].fill_(-3.0)  # below -log 11, where gates close
    assert [layer.kept for layer in summary(pruner.model).layers] == [20, 15, 20, 20]
    assert pruner.density == 75 / 80


def test_a_shared_weight_is_counted_once():
    counted = summary(pruned(tied=True).model)
    assert [layer.name for layer in counted.layers] == ["blocks.0.0", "blocks.0.1", "blocks.1.1"]
    assert counted.total == 60
    assert counted.parameters == PARAMETERS - 20


def test_a_shared_weight_is_counted_once_after_finalize_too():
    model = pruned(tied=True).model
    before = summary(model)
    after = summary(finalize(model))
    assert (after.kept, after.total) == (before.kept, before.total)


def test_printed():
    lines = str(summary(pruned().model)).splitlines()
    assert lines[0].split() == ["matrix", "shape", "kept", "of", "density"]
    assert lines[1].split() == ["blocks.0.0", "5", "x", "4", "5", "20", "25.00%"]
    assert lines[-2].split() == ["all", "20", "80", "25.00%"]
    assert lines[-1].startswith("73 more parameters")  # 153 - 80
    assert len({len(line) for line in lines[:-1]}) == 1
    assert repr(summary(Blocks())) == str(summary(Blocks()))


def test_a_notebook_shows_a_table():
    html = summary(pruned().model)._repr_html_()
    assert html.count("<tr>") == 6  # head, four matrices, all
    row = "".join(f"<td>{text}</td>" for text in ("blocks.0.0", "5 × 4", "5", "20", "25.00%"))
    assert f"<tr>{row}</tr>" in html
    assert "<tr><td>all</td><td></td><td>20</td><td>80</td><td>25.00%</td></tr>" in html
    assert html.endswith("<p>73 more parameters (embeddings, norms, biases, heads) are not pruned</p>")


def test_names_with_markup_are_text():
    model = nn.Module()
    model.add_module("<b>&", nn.ModuleList([Blocks().blocks[0]]))
    html = summary(model)._repr_html_()
    assert "<td>&lt;b&gt;&amp;.0.0</td>" in html
    assert "<b>" not in html


def test_a_model_without_blocks():
    with pytest.raises(FinepruneError, match="no linear layers inside repeated blocks"):
        summary(nn.Linear(2, 2))


def test_a_model_without_weights_in_memory():
    with pytest.raises(FinepruneError, match="no weights in memory"):
        summary(Blocks().to("meta"))
