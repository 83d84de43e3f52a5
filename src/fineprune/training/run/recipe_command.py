"""Run `fineprune recipe` from the command line; slow imports happen inside the calls."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fineprune._messages import printable

recipe_app = typer.Typer(
    help="Check a recipe without running it, or print the schema of recipes; `fineprune recipes` lists them.",
    no_args_is_help=True,
)


@recipe_app.command()
def check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A YAML file, or a name that `fineprune recipes` lists.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As for `fineprune run`.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Find mistakes in a recipe, the columns of its data and its model, or say what it will do."""
    from fineprune.training.run.recipe import Recipe
    from fineprune.training.run.recipe_check import check_recipe, summary_lines

    checked = check_recipe(Recipe.load(file, overrides or []))
    for line in [json.dumps(checked)] if as_json else map(printable, summary_lines(checked)):
        print(line)


@recipe_app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, with which editors complete and check them."""
    from fineprune.training.run.builtin_recipes import SCHEMA

    print(SCHEMA.read_text(encoding="utf-8"), end="")
