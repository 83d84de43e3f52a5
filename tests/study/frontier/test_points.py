"""Which runs are of one task, and so in one picture."""

from pathlib import Path
from types import SimpleNamespace

from fineprune.study.frontier.points import Model, _data, _told_apart


def model(place, name):
    return Model(name, None, [SimpleNamespace(path=Path(place) / name)])


def test_models_of_one_name_are_told_apart_by_their_folder():
    models = [
        model("st/mini", "dense"),
        model("st/mp", "dense"),
        model("st/mp", "run/dense"),
        model("st/mp", "x"),
    ]
    assert [each.name for each in _told_apart(models)] == ["mini/dense", "mp/dense", "run/dense", "x"]
    both = [model("a", "run/dense"), model("b", "run/dense")]
    assert [each.name for each in _told_apart(both)] == ["a/run/dense", "b/run/dense"]


def key(model="minilm", distillation=None, **task):
    recipe = {"task": task, "model": {"name": model}, "distillation": distillation}
    run = SimpleNamespace(recipe=recipe, path=Path("absent"))
    return _data(SimpleNamespace(runs=[run], group=SimpleNamespace(metric="f1")))


def test_columns_of_tags_are_tasks_of_their_own():
    tagger = {"kind": "token_classification", "train": "a.conll"}
    assert key(**tagger, tags=2) == key(**tagger, tags=2)
    assert key(**tagger, tags=2) != key(**tagger, tags=3)
    assert key(**tagger, words=0) != key(**tagger, words=1)


def test_embeddings_are_compared_with_those_of_one_dense_model():
    encoder = {"kind": "embedding", "train": "texts.txt"}
    own = key(**encoder)
    assert key(distillation={"alpha": 1.0, "teacher": None}, **encoder) == own
    assert key(model="runs/pruned", distillation={"teacher": "minilm"}, **encoder) == own
    assert key(distillation={"teacher": "mpnet"}, **encoder) != own
    assert key(model="mpnet", **encoder) != own
    assert key(loss="ranking", **encoder) != own  # by whole rows, other texts are held out
    given = encoder | {"validation": "dev.txt"}
    assert key(loss="ranking", **given) == key(**given)


def test_a_teacher_makes_no_other_task_of_labels():
    labeled = {"kind": "classification", "train": "a.tsv"}
    assert key(distillation={"teacher": "dense"}, **labeled) == key(**labeled)
