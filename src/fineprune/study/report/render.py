"""Render the values of the page into HTML: the template, with the style and the script inside."""

from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup


def render(page: dict[str, Any]) -> str:
    """Return one self-contained page. Every text is escaped, except the drawings of figures."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_read("page.html"))
    html = template.render(style=Markup(_read("style.css")), script=Markup(_read("page.js")), **page)
    # A name or a label may hold half a character, which no file can.
    return html.encode("utf-8", "replace").decode("utf-8")


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
