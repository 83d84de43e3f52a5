"""The scores of cross-encoders with one label and with several."""

import json

import pytest
import torch
from runtime.models import make_model, make_tokenizer

from fineprune.checkpoint.loading import open_model
from fineprune.errors import FinepruneError
from fineprune.tasks.text.prediction import predict
from fineprune_runtime import EngineError
from fineprune_runtime.cross_encoders import has_sigmoid
from fineprune_runtime.loading import load

QUERIES, PASSAGES = ["a good film", "bad", "the film"], ["bad", "very good", "a film " * 5]


@pytest.fixture(scope="module")
def bodies(tmp_path_factory):
    """Folders of transformers with heads for one label and for three."""
    folder = tmp_path_factory.mktemp("bodies")
    for labels in (1, 3):
        make_model("bert", "text", labels).save_pretrained(folder / str(labels))
        make_tokenizer("bert").save_pretrained(folder / str(labels))
    return folder


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("name", ["Sigmoid", "Identity", None])
def test_scores(labels, name, bodies, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    function = None if name is None else getattr(torch.nn, name)()
    theirs = library.CrossEncoder(str(bodies / str(labels)), device="cpu", activation_fn=function)
    theirs.save_pretrained(str(tmp_path / "in"), create_model_card=False)
    # With several labels, a score is a probability, which the library gives by apply_softmax.
    softmax = labels > 1 and name != "Sigmoid"
    rows = theirs.predict(list(zip(QUERIES, PASSAGES, strict=True)), apply_softmax=softmax).reshape(3, labels)
    model, tokenizer, _ = open_model(tmp_path / "in")
    for found in (
        load(tmp_path / "in").predict(QUERIES, PASSAGES),
        predict(model, tokenizer, QUERIES, PASSAGES),
    ):
        assert [each.score for each in found] == pytest.approx(rows.max(axis=1), abs=1e-5)
        if labels > 1:
            assert [each.label for each in found] == [f"class {row.argmax()}" for row in rows]


@pytest.mark.parametrize("labels", [1, 3])
def test_another_function_is_refused(labels, bodies, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    cross = library.CrossEncoder(str(bodies / str(labels)), device="cpu", activation_fn=torch.nn.Tanh())
    cross.save_pretrained(str(tmp_path / "in"), create_model_card=False)
    said = (
        "activation_fn of the cross-encoder is 'torch.nn.modules.activation.Tanh'; allowed are torch.nn.Sig"
    )
    with pytest.raises(EngineError, match=said):
        load(tmp_path / "in")
    model, tokenizer, _ = open_model(tmp_path / "in")
    with pytest.raises(FinepruneError, match=said):
        predict(model, tokenizer, QUERIES, PASSAGES)


def test_a_cross_encoder_of_several_labels_at_once(bodies, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    library.CrossEncoder(str(bodies / "3"), device="cpu").save_pretrained(str(tmp_path / "in"))
    config = json.loads((tmp_path / "in/config.json").read_text())
    config["problem_type"] = "multi_label_classification"
    (tmp_path / "in/config.json").write_text(json.dumps(config))
    model = load(tmp_path / "in")
    assert (model.paired, model.usual) == (True, 40)


def test_without_a_setting_one_label_goes_through_the_sigmoid():
    about = {"model_type": "CrossEncoder"}
    assert has_sigmoid({}, about, 1)
    assert not has_sigmoid({}, about, 3)
    assert not has_sigmoid({}, {}, 1)
    assert has_sigmoid({}, about | {"activation_fn": "torch.nn.Sigmoid"}, 3)
