"""Build the documentation site: `make docs`.

Sphinx, because the API reference comes from docstrings and is checked while it is built: a name that no page
defines, a link to a missing section and a page that no list names are warnings, and warnings are errors.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from reference_pages import write_pages

import fineprune

project = "fineprune"
author = "The fineprune authors"
project_copyright = "2026, the fineprune authors"
release = version = fineprune.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
nitpicky = False  # types of torch and transformers have no pages here

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "separated"
autodoc_default_options = {"members": True, "exclude-members": "__new__, __init__"}
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "fineprune"
linkcheck_timeout = 20


_COLON = "\N{TWO DOT PUNCTUATION}"  # what stands for a colon while napoleon looks for types


def _as_markdown(app, what, name, obj, options, lines):
    """Show code in docstrings as it is written: `name` in one pair of backticks, and |W| as it stands."""
    for i, line in enumerate(lines):
        pieces = re.split(r"(?<!`)`([^`]+)`(?!`)", line)
        pieces[1::2] = [f"``{code}``" for code in pieces[1::2]]
        pieces[::2] = [text.replace("|", r"\|") for text in pieces[::2]]
        lines[i] = "".join(pieces)
        if what in ("attribute", "property"):  # napoleon would take what is before a colon for the type
            lines[i] = lines[i].replace(":", _COLON)


def _colons_back(app, what, name, obj, options, lines):
    lines[:] = [line.replace(_COLON, ":") for line in lines]


def setup(app):
    """Register the hooks, before and after napoleon's."""
    app.connect("autodoc-process-docstring", _as_markdown, priority=100)
    app.connect("autodoc-process-docstring", _colons_back, priority=900)


write_pages(Path(__file__).parent / "reference")
