"""README and the pages of docs/: their Python and their commands run as they are printed, on tiny models.

A page runs from top to bottom in one folder, in which its names are there: `bert-base-uncased` and `dense`
are tiny models, `minilm` too, and what a page takes as given (`train`, `loader`) is in `GIVEN`. Numbers of
steps are cut; a command of minutes or hours is parsed only.
"""

import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from support import call
from typer.main import get_command

from fineprune import cli
from fineprune.training.run.builtin_recipes import packaged
from fineprune.training.run.recipe import Recipe

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"

RUN = [
    "README.md",
    "docs/quickstart.md",
    "docs/trainer.md",
    "docs/own-loop.md",
    "docs/distillation.md",
    "docs/compact.md",
    "docs/serving.md",
    "docs/lora.md",
]
"""Pages whose blocks all run."""

ELSEWHERE = {
    "docs/calibration.md": "tests/pruning/calibration; its second block needs a trained run",
    "docs/embeddings.md": "test_the_texts_of_the_page_on_embeddings, with the real data",
    "docs/engine.md": "tests/runtime, tests/inference",
    "docs/extending.md": "test_extending.py runs its blocks",
    "docs/methods.md": "tests/pruning/test_extrapolation.py",
    "docs/scaling.md": "needs several processes: tests/pruning/distributed",
    "docs/sentence-models.md": "tests/checkpoint/test_sentence_models.py, test_examples_trainers.py",
    "docs/structures.md": "tests/pruning/test_shrink.py",
}
"""Pages with Python that does not run here, and what covers it."""

LONG = ("bench", "export", "study", "demo", "frontier")
"""Commands that are parsed, not run."""

MANY_STEPS = re.compile(r"\b(2000|600)\b")
TEXTS = ["a good film", "very good", "a bad film", "very bad"]


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    line: int
    text: str


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    content = (REPOSITORY / page).read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", content, re.MULTILINE | re.DOTALL)
    return [Block(hit[1], content.count("\n", 0, hit.start()) + 1, hit[2]) for hit in found]


def commands(block: Block) -> list[list[str]]:
    """Return the arguments of the `fineprune` commands in a block that is not Python."""
    if block.language in ("python", "yaml", "text"):
        return []
    lines = block.text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines if "fineprune" in line]
    return [line[1:] for line in words if line and line[0] == "fineprune"]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Where the run lies from which pages go on, once the first of them has trained it."""
    return tmp_path_factory.mktemp("started") / "runs"


@pytest.fixture
def place(tmp_path, monkeypatch, save_body):
    """The folder in which a page runs."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from fineprune.checkpoint import model_folder
    from fineprune.training.run import training_config

    monkeypatch.chdir(tmp_path)
    tiny = save_body(max_position_embeddings=128, initializer_range=0.05)
    shutil.copytree(tiny, "bert-base-uncased")
    AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=2).save_pretrained("dense")
    AutoTokenizer.from_pretrained(tiny).save_pretrained("dense")
    monkeypatch.setattr(model_folder, "minilm_folder", lambda: tiny)
    monkeypatch.setattr(training_config, "chosen_steps", lambda examples, per_step: 20)
    rows = "".join(f"{text},{('bad', 'good')['good' in text]}\n" for text in TEXTS * 16)
    for name in ("train.csv", "dev.csv"):
        Path(name).write_text(f"text,label\n{rows}", encoding="utf-8")
    return tmp_path


@pytest.fixture
def given(place):
    """Names that the pages use without defining them."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import fineprune

    tokenizer = AutoTokenizer.from_pretrained("dense")
    rows = [{**tokenizer(text), "labels": int("good" in text)} for text in TEXTS]
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    batch["labels"] = torch.tensor([row["labels"] for row in rows])
    model = AutoModelForSequenceClassification.from_pretrained("dense")
    config = fineprune.PruningConfig("magnitude", 0.5, warmup=0, cooldown=0)
    fineprune.prepare(model, config, total_steps=1).step()
    fineprune.finalize(model)
    model.save_pretrained("sparse")
    return {"train": rows * 8, "loader": [batch] * 20, "tokenizer": tokenizer, "model": model}


@pytest.mark.parametrize("page", RUN)
@pytest.mark.filterwarnings("ignore::fineprune.FinepruneWarning")  # of plans of so few steps
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's
@pytest.mark.filterwarnings("ignore:.pin_memory")  # the pages do not say that there is no GPU
def test_blocks_run(page, place, given, started, capsys):
    if page in ("docs/compact.md", "docs/serving.md"):  # they go on from the quickstart
        if not started.exists():
            fast = ["task.train=train.csv", "task.validation=dev.csv", "pruning.density=0.5"]
            assert call("run", "short", *fast, "--out", "runs/mine") == 0
            shutil.copytree("runs", started)
        shutil.copytree(started, "runs", dirs_exist_ok=True)
        assert call("compact", "runs/mine", "small") == 0
    names = dict(given)
    for block in blocks(page):
        if block.language == "python":
            source = "\n" * block.line + MANY_STEPS.sub("20", block.text)
            exec(compile(source, page, "exec"), names)
        for arguments in commands(block):
            if arguments[0] not in LONG:
                assert call(*arguments) == 0, f"fineprune {' '.join(arguments)}: {capsys.readouterr().err}"


def all_pages():
    return ["README.md", *(str(path.relative_to(REPOSITORY)) for path in sorted(DOCS.rglob("*.md")))]


def test_each_page_with_python_runs_somewhere():
    with_python = {page for page in all_pages() if any(block.language == "python" for block in blocks(page))}
    assert with_python == {*RUN, *ELSEWHERE}


@pytest.mark.realdata
@pytest.mark.parametrize("page", all_pages())
def test_recipes_take_the_settings_of_commands(page, realdata, tmp_path, monkeypatch):
    """Of each `fineprune run RECIPE key=value …`; models and files of a user need not be there."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "data").symlink_to(realdata)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for block in blocks(page):
        text = block.text.replace("$SOFT", "pruning.method=soft_movement pruning.warmup=0.02").replace(
            "SEED", "0"
        )
        for command in commands(block._replace(text=text)):
            settings = [word for word in command[2:] if "=" in word and not word.startswith("-")]
            if command[0] == "run" and command[1] in packaged():
                Recipe.load(command[1], settings)


@pytest.mark.realdata
def test_the_texts_of_the_page_on_embeddings(realdata, tmp_path, monkeypatch):
    (source,) = (block.text for block in blocks("docs/embeddings.md") if block.language == "python")
    monkeypatch.chdir(tmp_path)
    exec(source.replace("../shared/data", str(realdata)), {})
    lines = (tmp_path / "texts.txt").read_text().splitlines()
    assert f"on {len(lines):,} different texts" in (DOCS / "embeddings.md").read_text()
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize("page", all_pages())
def test_commands_are_commands(page):
    app = get_command(cli.app)
    for block in blocks(page):
        for arguments in commands(block):
            name, *rest = arguments
            assert name in app.commands, f"{page}: fineprune {name}"
            app.commands[name].make_context(name, rest)  # raises for an option that is not there


def test_troubleshooting_quotes_messages_that_there_are():
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"\*\*`([^`\n]+)`\*\*", page)
    assert len(quoted) > 10
    source = ""
    for root in ("src", "runtime/src"):
        for path in sorted((REPOSITORY / root).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            source += re.sub(r'"\s*\n\s*f?"', "", text)  # literals that go on in the next line
    assert [message for message in quoted if message not in source] == []
