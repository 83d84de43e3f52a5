"""The frontier of each kind of task, and of models in the folders of other runs: dense stages, densities."""

import json

import pytest
from sentence_folders import sentence_folder, texts
from support import call

from fineprune.pruning.summary import summary
from fineprune.study.frontier import measuring, runtimes
from fineprune.study.frontier.measuring import Options, measure
from fineprune.study.frontier.points import points_of, tasks_in
from fineprune.tasks.opening import open_trained
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.train import run_recipe

pytestmark = pytest.mark.filterwarnings("always::fineprune.errors.FinepruneWarning")  # of few texts

EXACT = ("torch", "engine float32")
OPTIONS = Options(texts=50, rounds=1, wanted=lambda run, name: name in EXACT, memory=False)
TRAINING = {"steps": 4, "batch_size": 4, "learning_rate": 0.01, "max_length": 16}
PRUNING = {"method": "magnitude", "density": 0.5, "warmup": 0}


def question(number: int) -> dict:
    context = f"{'very ' * (number % 3)}good film a bad film"
    answer = {"text": "good film", "answer_start": context.index("good")}
    about = {"id": f"{number}", "question": "good" if number % 2 else "good film", "answers": [answer]}
    return {"title": "", "paragraphs": [{"context": context, "qas": [about]}]}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """The section `task` of each kind, over a few examples."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "q.json").write_text(json.dumps({"version": "1", "data": [question(n) for n in range(8)]}))
    tagged = ["very O\n" * (n % 3) + "good B-X\nfilm I-X\nbad O\n" for n in range(8)]
    (folder / "t.txt").write_text("\n".join(tagged))
    (folder / "e.txt").write_text("\n".join(texts(40)))
    rows = [f"{('bad', 'good')[n % 2]} {'very ' * (n % 3)}film\t{('no', 'yes')[n % 2]}" for n in range(12)]
    (folder / "c.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    places = {
        "question_answering": "q.json",
        "token_classification": "t.txt",
        "embedding": "e.txt",
        "classification": "c.tsv",
    }
    found = {}
    for kind, name in places.items():
        file = str(folder / name)
        found[kind] = {"kind": kind, "train": file} | ({} if kind == "embedding" else {"validation": file})
    found["question_answering"]["stride"] = 2
    return found


def checked(folder) -> dict[str, float]:
    """Measure the one task of a folder; each score of torch is that of the run, and the engine agrees."""
    (task,) = tasks_in([folder])
    points = points_of(task, measure(task, OPTIONS))
    assert {point.runtime for point in points} == set(EXACT)
    assert not any(point.wrong for point in points)
    for point in points:
        (run,) = point.model.runs
        assert point.score == pytest.approx(100 * run.results["score"], abs=1e-4)
    return {point.model.name: point.model.dense for point in points}


@pytest.mark.parametrize("kind", ["question_answering", "token_classification"])
def test_a_reader_and_a_tagger_beside_their_dense_stage(tasks, kind, save_body, tmp_path):
    values = {"model": save_body(), "task": tasks[kind], "training": TRAINING, "pruning": PRUNING}
    run_recipe(Recipe.from_dict(values | {"dense": {"steps": 4}}), tmp_path / "run-s0", progress=False)
    assert checked(tmp_path / "run-s0") == {"run/dense": True, "run": False}


def test_sentence_encoders_and_a_dense_one_that_learns_nothing(tasks, save_body, tmp_path):
    model = sentence_folder(save_body(), tmp_path / "model")
    values = {"model": model, "task": tasks["embedding"], "training": TRAINING, "pruning": PRUNING}
    run_recipe(Recipe.from_dict(values), tmp_path / "runs" / "half-s0", progress=False)
    nothing = {"training": TRAINING | {"steps": 1, "learning_rate": 0.0}, "pruning": None}
    results = run_recipe(Recipe.from_dict(values | nothing), tmp_path / "runs" / "dense-s0", progress=False)
    assert results["score"] == pytest.approx(1)
    assert checked(tmp_path / "runs") == {"half": False, "dense": True}


def test_each_density_of_a_run_and_the_dense_stage_under_refine(tasks, save_body, tmp_path):
    values = {
        "model": save_body(),
        "task": tasks["classification"],
        "training": TRAINING,
        "dense": {"steps": 2},
    }
    family = PRUNING | {"density": [0.75, 0.5], "cooldown": 0}
    run_recipe(Recipe.from_dict(values | {"pruning": family}), tmp_path / "family", progress=False)
    assert checked(tmp_path / "family") == {
        "family/dense": True,
        "family/density-0.75": False,
        "family": False,
    }
    refined = {"pruning": PRUNING | {"structure": {"feed_forward": "neuron"}}, "refine": {"steps": 1}}
    run_recipe(Recipe.from_dict(values | refined), tmp_path / "refined", progress=False)
    assert checked(tmp_path / "refined") == {"refined/dense": True, "refined": False}
    shrunk = open_trained(tmp_path / "refined", need_tokenizer=True).model
    subject = runtimes.Subject(tmp_path / "refined", shrunk, False, [], 1, tmp_path)
    assert summary(shrunk).density == 1
    assert subject.packed("int8") == tmp_path / "compact-int8"  # its matrices are smaller as int8, too


def test_a_task_that_cannot_be_measured_stops_no_other(tasks, save_body, tmp_path, capsys, monkeypatch):
    for name in list(runtimes.RUNTIMES):
        if name != "torch":
            monkeypatch.delitem(runtimes.RUNTIMES, name)
    monkeypatch.setattr(measuring.resident_memory, "measure", lambda request: PRUNED)
    values = {"model": save_body(), "task": tasks["classification"], "training": TRAINING, "pruning": PRUNING}
    run_recipe(Recipe.from_dict(values | {"dense": {"steps": 2}}), tmp_path / "a", progress=False)
    other = {"task": tasks["token_classification"], "pruning": None}
    run_recipe(Recipe.from_dict(values | other), tmp_path / "b", progress=False)
    assert call("frontier", tmp_path, "--rounds", 1, "--max-mb", 10) == 2
    printed = capsys.readouterr()
    assert "a/dense" in printed.out
    assert "b: the one setting of its task" in printed.err


class PRUNED:
    process = 100.0
