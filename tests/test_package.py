"""What `import fineprune` gives, and what it costs."""

import os
import subprocess
import sys

import pytest

import fineprune
import fineprune_runtime


def test_public_names_resolve():
    for name in fineprune.__all__:
        assert getattr(fineprune, name) is not None
    assert set(fineprune.__all__) <= set(dir(fineprune))


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        _ = fineprune.prune


def test_import_loads_nothing_heavy():
    code = (
        "import sys, fineprune, fineprune.cli, fineprune.training.run.recipe_check;"
        "print({'torch', 'transformers', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_core_needs_torch_alone():
    code = (
        "import sys, fineprune.pruning.pruner, fineprune.pruning.summary;"
        "print({'transformers', 'datasets', 'pandas', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_ci_has_the_engine():
    # Its own tests are skipped where no library was built; CI is not such a place.
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    assert fineprune_runtime.levels() or not in_ci
