"""The figure of the score against FLOPs and time, by what was made smaller."""

import pytest

from fineprune.study.frontier import shapes
from fineprune.study.frontier.points import Point, tasks_in
from fineprune.study.frontier.stored import stored_figures
from fineprune.training.run.results import gigaflops_of

HEADS = {"attention": "head", "feed_forward": "neuron"}
CONFIG = {"hidden_size": 16, "num_hidden_layers": 2}


@pytest.fixture
def folder(write_run):
    """Runs of every kind, at 100 to 800 FLOPs, with scores that rise with them."""

    def add(name, method, density, flops, structure=None, **given):
        total = given.pop("total", 100)
        folder = write_run(
            name, method, density, flops / 1000, more={"flops": {"nonzero": flops}, "total": total}, **given
        )
        if structure is not None:
            for file in ("recipe.yaml", "results.json"):
                path = folder / file
                old = f'"method": "{method}"' if file.endswith("json") else f"method: {method}"
                new = f"{old}, " if file.endswith("json") else f"{old}\n  "
                key = '"structure": ' if file.endswith("json") else "structure: "
                path.write_text(path.read_text().replace(old, new + key + structure))
        return folder.parent

    add("t-dense-s0", "dense", None, 800)
    add("small-dense-s0", "dense", None, 300, model={"name": "smaller", "layers": None})
    add("top-dense-s0", "dense", None, 400, model={"name": "tiny", "layers": 1}, total=50)
    add("cut-dense-s0", "dense", None, 350, model={"name": "tiny", "structure": HEADS, "density": 0.5})
    add("t-movement-0.1-s0", "movement", 0.1, 100, model={"name": "runs/t-dense-s0", "layers": None})
    add("b-movement-0.5-s0", "movement", 0.5, 500, "[4, 1]")
    add("h-movement-0.5-s0", "movement", 0.5, 450, '{"attention": "head"}')
    return add("l-movement-0.1-s0", "movement", 0.1, 150, '[{"attention": "head"}, "element"]')


def timed(model, runtime, milliseconds, wrong=False):
    return Point(model, runtime, 50.0, None, milliseconds, 1.0, None, 1.0, 1, wrong)


def test_the_kind_of_each_model(folder):
    (task,) = tasks_in([folder])
    kinds = {shape.model.name: shape.kind for shape in shapes.shapes_of(task, [])}
    assert kinds == {
        "t-dense": "dense",
        "small-dense": "another dense model",
        "top-dense": "layers left out",
        "cut-dense": "heads, neurons",
        "t-movement-0.1": "single weights",
        "b-movement-0.5": "blocks",
        "h-movement-0.5": "heads, neurons",
        "l-movement-0.1": "heads, neurons, then weights",
    }


def test_each_model_is_in_its_fastest_runtime(folder):
    (task,) = tasks_in([folder])
    model = next(model for model in task.models if model.name == "t-movement-0.1")
    points = [timed(model, "a", 2.0), timed(model, "b", 1.0), timed(model, "c", 0.5, wrong=True)]
    by_name = {shape.model.name: shape for shape in shapes.shapes_of(task, points)}
    assert by_name["t-movement-0.1"].fastest == points[1]
    assert by_name["t-dense"].fastest is None
    figure = shapes.draw(task, points)
    assert "FLOPs and latency" in figure.title
    rows = {row[1]: row[2:] for row in figure.data}
    assert rows["t-movement-0.1"] == ("single weights", 0.1, 1, "accuracy", 10.0, 1e-7, "b", 1.0, 50.0)
    assert rows["t-dense"] == ("dense", None, 1, "accuracy", 80.0, 8e-7, None, None, None)


def test_a_page_has_it_without_any_measurement(folder):
    ((figure, said),) = stored_figures(folder)
    assert (figure.name, said) == ("shapes-", [])  # these recipes do not name their data
    assert "latency" not in figure.title
    assert "heads, neurons, then weights" in figure.svg()


def test_runs_of_one_kind_have_no_such_figure(write_run):
    for name, density in (("t-dense-s0", None), ("t-movement-0.1-s0", 0.1)):
        folder = write_run(name, "dense" if density is None else "movement", density, 0.8, config=CONFIG)
    assert stored_figures(folder.parent) == []


def test_flops_of_older_results():
    # 100 weights and 2 · 128 · 16 · 2 products for each of 128 tokens.
    assert gigaflops_of({"kept": 100}, CONFIG) == 2 * 128 * (100 + 2 * 128 * 16 * 2) / 1e9
    assert gigaflops_of({"kept": 100, "shrunk": {"flops": [10, 4]}}, CONFIG) == 4e-9
    assert gigaflops_of({"kept": 100}, {}) is None
    assert gigaflops_of({"kept": 100, "pruned": {}}, CONFIG) is None  # of a model made smaller before
