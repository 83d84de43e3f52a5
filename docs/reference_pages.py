"""Write the pages of the reference that are made from the code: every command, every setting of a recipe."""

import subprocess
import sys
from pathlib import Path

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
    return "# Recipes\n"
