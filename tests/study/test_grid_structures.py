"""The axis `structure` of a study: which runs it makes, and what it refuses."""

import pytest
import yaml
from study.grids import OUT, names, study

from fineprune import FinepruneError
from fineprune.study.grid import FOLDER, Cell, cell_of

HEADS = {"attention": "head", "feed_forward": "neuron"}


def test_structures_are_an_axis():
    structures = {"element": "element", "heads": HEADS, "blocks": [4, 1]}
    axes = {"method": ["dense", "soft_movement"], "structure": structures, "variant": {"slow": []}}
    made = study(axes=axes, skip=[{"structure": "blocks"}])
    runs = made.runs(OUT)
    assert [run.name for run in runs] == [
        "a-dense-s0",
        "a-soft_movement-0.1-s0-slow",
        "a-soft_movement.heads-0.1-s0-slow",
    ]
    assert [run.recipe.pruning and run.recipe.pruning.structure for run in runs] == [
        None,
        "element",
        HEADS,
    ]
    assert [run.cell.structure for run in runs] == [None, None, "heads"]
    assert runs[2].cell == cell_of(runs[2].name, runs[2].recipe.to_dict())
    # A method that prunes single weights alone has those.
    assert names(study(axes={"method": "admm", "structure": structures})) == ["a-admm-0.1-s0"]


def test_an_axis_of_elements_alone_overrides_the_structure_of_the_recipe(tmp_path):
    values = yaml.safe_load((FOLDER.parents[1] / "recipes" / "small-sst2.yaml").read_text())
    values["pruning"]["structure"] = HEADS
    for part in ("train", "dev"):
        (tmp_path / f"{part}.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
    values["task"]["data_dir"] = str(tmp_path)
    recipe = tmp_path / "heads.yaml"
    recipe.write_text(yaml.safe_dump(values))
    for axis, expected in (({"structure": {"element": "element"}}, "element"), ({}, HEADS)):
        (run,) = study({"a": str(recipe)}, axes=axis).runs(OUT)
        assert run.recipe.pruning.structure == expected


def test_structures_that_cannot_be_told_apart_are_refused():
    blocks = {"method": "admm", "structure": {"blocks": [4, 1]}}
    with pytest.raises(FinepruneError, match="admm prunes single weights alone; add element: element"):
        study(axes=blocks).cells()
    override = "pruning.structure={attention: head}"
    for given in ({"overrides": [override]}, {"axes": {"variant": {"a": [override]}}}):
        axes = {"method": "movement", "structure": {"element": "element"}} | given.pop("axes", {})
        with pytest.raises(FinepruneError, match=r"axes\.structure says what is pruned"):
            study(axes=axes, **given)


def test_a_structure_is_in_the_name_only_of_runs_that_have_one():
    recipe = study().runs(OUT)[0].recipe.to_dict()
    assert cell_of("a-movement.heads-0.1-s0", recipe) is None
    heads = recipe | {"pruning": recipe["pruning"] | {"structure": HEADS}}
    assert cell_of("a-movement.heads-0.1-s0", heads) == Cell(
        "a", "movement", 0.1, None, False, 0, structure="heads"
    )
    assert cell_of("a-movement-0.1-s0-heads", heads).variant == "heads"  # of a study without the axis


@pytest.mark.parametrize(
    ("structure", "said"),
    [
        ([4, 1], r"axes.structure=\[4, 1\]: give structures by name"),
        ({"a-b": [4, 1]}, "axes.structure: 'a-b' becomes part of the name of a folder"),
        ({"plain": "element"}, "axes.structure.plain='element': single weights, and they alone"),
        ({"heads": {"attention": "neuron"}}, "axes.structure.heads: structure.attention='neuron'"),
    ],
)
def test_structures_that_are_refused(structure, said):
    with pytest.raises(FinepruneError, match=said):
        study(axes={"structure": structure})
