"""What every test stands on: no network, one thread, and the way to the real data sets."""

import os
from pathlib import Path

# Before anything imports transformers, tokenizers or datasets: they read these once, when imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """One thread for torch: sums come out in one order, and tiny models run fastest."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of the real data sets; for tests marked `realdata`.

    Where it is absent the test is skipped, in CI (CI=true) it fails.
    """
    folder = Path(os.environ.get("FINEPRUNE_DATA") or REPOSITORY.parent / "shared" / "data").resolve()
    if folder.is_dir():
        return folder
    reason = f"no folder {folder}: set FINEPRUNE_DATA to the folder of the real data sets"
    if os.environ.get("CI", "").lower() in ("", "0", "false"):
        pytest.skip(reason)
    pytest.fail(f"{reason} (in CI they must be there)")
