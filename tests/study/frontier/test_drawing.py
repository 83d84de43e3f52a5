"""What the points of the picture are called."""

from types import SimpleNamespace

import pytest

from fineprune.study.frontier.drawing import _names


def model(name, density=None):
    cell = SimpleNamespace(density=density)
    return SimpleNamespace(name=name, dense=density == 1.0, group=SimpleNamespace(cell=cell))


@pytest.mark.parametrize(
    ("models", "names"),
    [
        ([model("a-dense", 1.0), model("a-0.1", 0.1)], ["dense", "10 %"]),
        (
            [model("mpnet", 1.0), model("minilm", 1.0), model("mpnet-10", 0.1), model("minilm-10", 0.1)],
            ["mpnet", "minilm", "mpnet 10 %", "minilm 10 %"],
        ),
        ([model("a-lr=1e-2", 0.1), model("a-lr=1e-3", 0.1)], ["lr=1e-2 10 %", "lr=1e-3 10 %"]),
        ([model("x-1", 0.1), model("x-1-1", 0.1)], ["x-1", "x-1-1"]),
        (
            [
                model("sst2-6-dense", 1.0),
                model("sst2-3-dense", 1.0),
                model("sst2-6-movement-0.1-heads", 0.1),
                model("sst2-6-movement-0.1-elements", 0.1),
                model("sst2-3-movement-0.03-heads", 0.03),
            ],
            ["6 dense", "3 dense", "6 0.1 heads", "6 0.1 elements", "3 0.03 heads"],
        ),
        ([model("runs/a/dense", 1.0), model("runs/b/dense", 1.0)], ["a dense", "b dense"]),
        ([model("one", None), model("two", None)], ["one", "two"]),
    ],
)
def test_names_tell_the_models_apart(models, names):
    assert list(_names(models).values()) == names
    assert len(set(names)) == len(models)
