"""Studies for the tests of grids."""

from pathlib import Path

from fineprune.study.grid import Study

OUT = Path("runs/mine")


def study(recipes=None, **values) -> Study:
    axes = values.pop("axes", {})
    if isinstance(axes, dict):
        axes = {"method": ["movement"], "density": [0.1]} | axes
    base = {"name": "mine", "recipes": recipes or {"a": "paper-mnli"}, "axes": axes}
    return Study.from_dict(base | values)


def names(made: Study) -> list[str]:
    return [cell.name for cell in made.cells()]
