"""What `import fineprune` gives, and what it costs."""

import subprocess
import sys

import pytest

import fineprune


def test_public_names_resolve():
    for name in fineprune.__all__:
        assert getattr(fineprune, name) is not None
    assert set(fineprune.__all__) <= set(dir(fineprune))


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        _ = fineprune.prune


def test_import_loads_nothing_heavy():
    code = (
        "import sys, fineprune, fineprune.cli; print({'torch', 'transformers', 'pandas'} & set(sys.modules))"
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
