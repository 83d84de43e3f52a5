import json

import numpy as np
import pytest
import torch
from runtime.models import KINDS, TAGS, TASKS, make_model

from fineprune_runtime import EngineError, Norm
from fineprune_runtime.dense import Dense
from fineprune_runtime.folder import Folder
from fineprune_runtime.heads import Head, labels, read_head, softmax


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_torch(kind, task, tmp_path):
    model = make_model(kind, task)
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[2, 7, 9, 8, 3], [2, 5, 6, 7, 3]])
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
    hidden = output.hidden_states[-1].numpy()
    if task == "questions":
        expected = torch.stack([output.start_logits, output.end_logits], dim=-1)
    else:
        expected = output.logits
    head = read_head(Folder(tmp_path))
    found = head(hidden)
    assert found.shape == expected.shape
    assert np.abs(found - expected.numpy()).max() < 2e-6
    assert (head.pooler is None) == (task != "text" and kind != "modernbert")
    used = ("classifier", "pooler", "qa_outputs", "head")
    weights = [w.numel() for name, w in model.named_parameters() if any(part in name for part in used)]
    assert head.nbytes >= 4 * sum(weights)  # and what the engine adds to find its way in them


def test_each_activation_by_hand():
    hidden = np.array([[[1, -1], [9, 9]]], np.float32)  # the second token is not looked at
    same = Dense(np.eye(2, dtype=np.float32), np.array([0, 0], np.float32))
    out = Dense(np.array([[1, 0], [0, 1], [0, 0]], np.float32), np.array([0, 0, 7], np.float32))
    found = {name: Head(out, same, name)(hidden)[0].tolist() for name in ("tanh", "relu", "gelu")}
    assert found["tanh"] == pytest.approx([0.7615942, -0.7615942, 7])
    assert found["relu"] == [1, 0, 7]
    assert found["gelu"] == pytest.approx([0.8413447, -0.1586553, 7])


def test_what_the_pooler_reads():
    hidden = np.array([[[1, 3], [3, 5], [9, 9]]], np.float32)
    same = Dense(np.eye(2, dtype=np.float32), np.array([0, 0], np.float32))
    norm = Norm(np.array([2, 2], np.float32), np.array([0, 10], np.float32))
    first, mean, every = (Head(same, same, "relu", norm, 1e-30, rows) for rows in ("first", "mean", "every"))
    # The norm makes -1 and 1 of any two numbers: -2 and 12, and 0 and 10 of equal ones.
    assert first(hidden).tolist() == [[-2, 12]]
    assert every(hidden).tolist() == [[[-2, 12], [-2, 12], [0, 10]]]
    plain = Head(same, same, "relu", rows="mean")
    assert plain(hidden, np.array([[1, 1, 0]])).tolist() == [[2, 4]]
    assert plain(hidden)[0].tolist() == pytest.approx([13 / 3, 17 / 3])
    assert mean(hidden, np.array([[1, 1, 0]])).tolist() == [[-2, 12]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classifier_pooling": "max"}, "classifier_pooling in config.json is 'max', allowed are cls, mean"),
        (
            {"classifier_activation": "silu"},
            "classifier_activation in config.json is 'silu', allowed are gelu",
        ),
        ({"norm_bias": 1}, "norm_bias in config.json is 1, expected true or false"),
    ],
)
def test_settings_of_modernbert_that_cannot_be(settings, message, tmp_path):
    make_model("modernbert", "text").save_pretrained(tmp_path)
    folder = Folder(tmp_path)
    folder.config.update(settings)
    with pytest.raises(EngineError, match=message):
        read_head(folder)


def test_softmax_of_large_logits():
    assert softmax(np.array([[1000, 1000], [0, -1000]], np.float32)).tolist() == [[0.5, 0.5], [1, 0]]


def test_names_of_the_classes():
    assert labels({"model_type": "bert", "id2label": {"1": "b", "0": "a"}}) == ("a", "b")
    assert labels({"model_type": "bert"}) == ("LABEL_0", "LABEL_1")
    assert labels({"model_type": "bert", "num_labels": 1}) == ("LABEL_0",)
    for wrong in ({}, [], {"1": "a"}, {"a": "b"}, "x"):
        with pytest.raises(EngineError, match=r"id2label in config.json is .*expected names for the ids"):
            labels({"model_type": "bert", "id2label": wrong})


def changed(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return Folder(folder)


def test_a_head_that_does_not_fit(tmp_path):
    make_model("bert", "tokens").save_pretrained(tmp_path)
    assert labels(Folder(tmp_path).config) == tuple(TAGS)
    with pytest.raises(EngineError, match=r"classifier.bias is of shape \(5,\), and .* asks for \(2,\)"):
        read_head(changed(tmp_path, id2label={"0": "a", "1": "b"}))
    with pytest.raises(EngineError, match=r"its weights lack qa_outputs.bias"):
        read_head(changed(tmp_path, architectures=["BertForQuestionAnswering"]))
    with pytest.raises(EngineError, match=r"config.json names 3 labels; starts and ends of answers are 2"):
        read_head(changed(tmp_path, id2label={"0": "a", "1": "b", "2": "c"}))
    with pytest.raises(EngineError, match=r"a class that ends in ForSequenceClassification"):
        read_head(changed(tmp_path, architectures=["BertForMaskedLM"]))
