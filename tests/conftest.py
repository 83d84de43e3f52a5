"""What every test stands on: no network, one thread, a tiny BERT, and the way to the real data sets."""

import gc
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before anything imports transformers, tokenizers or datasets: they read these once, when imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "very", "a", "b"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """One thread for torch: sums come out in one order, and tiny models run fastest."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _imports_are_no_garbage() -> None:
    """Spare what was imported from searches for garbage: Trainers make several a run, half a second each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _signals() -> None:
    """Signals do what they do in a terminal, also where the tests run under nohup or in the background.

    For each test, since libraries that one uses, such as Ray, leave handlers of their own; and without asking
    which one is there, since Python does not know of those in C.
    """
    for name, usual in (("SIGHUP", signal.SIG_DFL), ("SIGINT", signal.default_int_handler)):
        number = getattr(signal, name, None)
        if number is not None:
            signal.signal(number, usual)


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


@pytest.fixture(scope="session")
def names() -> Callable[[Path], set[str]]:
    """`names(folder)`: of what is in it."""
    return lambda folder: {path.name for path in folder.iterdir()}


@pytest.fixture(scope="session")
def same_weights() -> Callable[[Any, Any], bool]:
    """Whether two models hold the same tensors, in the same types."""
    import torch

    def same(one: Any, other: Any) -> bool:
        ours, theirs = one.state_dict(), other.state_dict()
        return set(ours) == set(theirs) and all(
            ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]) for key in ours
        )

    return same


@pytest.fixture(scope="session")
def tokenizer():
    """Ids are positions in WORDS: good is 5, bad 6, film 7, very 8; [CLS] is 2, [SEP] 3."""
    from transformers import BertTokenizer

    return BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})


@pytest.fixture(scope="session")
def bert_config() -> Callable[..., Any]:
    """`bert_config(**settings)`: parameters spread wide, so that different texts get different answers."""
    from support import tiny_config

    def make(**settings: Any) -> Any:
        sizes = {"vocab_size": len(WORDS), "hidden_size": 8, "intermediate_size": 16}
        wide = {"max_position_embeddings": 32, "initializer_range": 0.5}
        return tiny_config(**(sizes | wide | settings))

    return make


@pytest.fixture(scope="session")
def save_body(tmp_path_factory: pytest.TempPathFactory, bert_config) -> Callable[..., str]:
    """`save_body(words, **settings)`: a new folder with a BERT without a head, and its tokenizer."""
    import torch
    from transformers import BertModel, BertTokenizer

    def save(words: list[str] = WORDS, **settings: Any) -> str:
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("models") / "tiny"
        BertModel(bert_config(**({"vocab_size": len(words)} | settings))).save_pretrained(folder)
        BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture
def full_disk() -> Iterator[Callable[..., None]]:
    """`full_disk()`: no file can grow beyond 4,000 bytes from now on, until `full_disk(False)`."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def set_limit(full: bool = True) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000 if full else limits[0], limits[1]))

    yield set_limit
    set_limit(False)
