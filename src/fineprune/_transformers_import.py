"""Register our quantizer as soon as transformers can take it, without importing transformers.

`import fineprune` must be fast, and `from_pretrained` must open compact models whichever of the two was
imported first. So if transformers' module for loading is not imported yet, we wait for its import.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_WATCHED = "transformers.modeling_utils"  # imported before any model, and after all that the hook needs
_HOOK = "fineprune.checkpoint.transformers_hook"


def hook() -> None:
    """Register the quantizer now, or as soon as transformers' loading is imported."""
    if _WATCHED in sys.modules:
        importlib.import_module(_HOOK)
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """An import finder that finds the watched module once, as usual, and runs the hook after it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        importlib.import_module(_HOOK)
