"""Write the pages of the reference that are made from the code: every command, every setting of a recipe."""

import itertools
import subprocess
import sys
from pathlib import Path

from recipe_schema import settings

_RECIPES = """# Recipes

A recipe is a YAML file with the sections below; `model`, `task` and `training` must be there. `fineprune
run FILE key=value` overrides a setting (`pruning.density=0.03`; `pruning=null` removes a section). Paths
are relative to the working directory. `model: NAME` and `task: NAME` are short for a mapping with a `name`.
A section `dense` takes the settings of `training` for a dense fine-tuning first; `methods` has a mapping of
sections for each method, which apply where the recipe chooses it.

`fineprune recipe check FILE` says what is wrong without running, `fineprune run FILE --dry-run` estimates
time and memory, and `fineprune recipe schema` prints the JSON Schema, with which editors complete the
settings: put `# yaml-language-server: $schema=recipe.schema.json` into the first line of the file, beside a
copy of it. `fineprune recipes` lists the recipes of the package.
"""

_COMMANDS = [sys.executable, "-m", "typer", "fineprune.cli", "utils", "docs", "--name", "fineprune"]


def write_pages(folder: Path) -> None:
    """Write `cli.md` and `recipes.md` into a folder, unless they are there and current."""
    for name, page in (("cli.md", commands_page()), ("recipes.md", recipes_page())):
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != page:
            path.write_text(page, encoding="utf-8")


def commands_page() -> str:
    """Return the page of the commands, which typer makes of their signatures."""
    page = subprocess.run(_COMMANDS, check=True, capture_output=True, text=True).stdout
    title, _, rest = page.partition("\n")
    return f"# Commands\n\n`{title.strip('# `')}` {rest.strip()}\n".replace("```console", "```text")


def recipes_page() -> str:
    """Return the page of the settings, of the dataclasses that a recipe is read into."""
    parts = [_RECIPES]
    for section, rows in itertools.groupby(settings(), key=lambda setting: setting.section):
        parts.append(f"## {section}\n")
        for row in rows:
            default = "required" if row.default == "required" else f"default `{row.default}`"
            parts.append(f"`{row.field}` ({row.type}; {default})\n: {row.description}\n")
    return "\n".join(parts)
