"""Models of sentence-transformers, saved small, answer alike: opened as their class, and without torch."""

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runtime.models import TEXTS, make_model, make_tokenizer

import fineprune
from fineprune.checkpoint import loading
from fineprune.checkpoint.loading import open_model
from fineprune.checkpoint.sentence_models import answers
from fineprune.errors import FinepruneError
from fineprune.tasks.text.prediction import predict
from fineprune.training.run.convert import compact_folder, dense_folder, export_folder
from fineprune.training.run.inspection import inspect_folder
from fineprune_runtime.errors import EngineError
from fineprune_runtime.loading import load

QUERIES, PASSAGES = ["a good film", "bad", "the film"], ["bad", "very good", "a film " * 9]
OF_THE_TRANSFORMER = (
    "config.json",
    "model.safetensors",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def bodies(tmp_path_factory) -> Path:
    """Folders of transformers: `body`, a pruned base model, and `head`, one with a score."""
    folder = tmp_path_factory.mktemp("bodies")
    for name, model in (("body", make_model("bert", "text").bert), ("head", make_model("bert", "text", 1))):
        model.save_pretrained(folder / name)
        make_tokenizer("bert").save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def sentences(library, bodies):
    """A model with two pooling modes, a norm, prompts and a length of its own."""
    modules = library.sentence_transformer.modules
    transformer = library.base.modules.Transformer(str(bodies / "body"))
    transformer.max_seq_length = 20
    parts = [transformer, modules.Pooling(16, ("mean", "max")), library.base.modules.Normalize()]
    return library.SentenceTransformer(
        modules=parts, device="cpu", prompts={"query": "very "}, default_prompt_name="query"
    )


@pytest.fixture(scope="module")
def cross(library, bodies):
    return library.CrossEncoder(str(bodies / "head"), device="cpu")


@pytest.fixture(scope="module")
def saved(sentences, cross, tmp_path_factory):
    """Where the library itself saved both."""
    folder = tmp_path_factory.mktemp("saved")
    for name, model in (("sentences", sentences), ("cross", cross)):
        model.save_pretrained(str(folder / name), create_model_card=False)
    return SimpleNamespace(sentences=folder / "sentences", cross=folder / "cross")


def answer_alike(library, place, sentences) -> None:
    """The model of a folder gives the vectors of `sentences`, opened by its class and without torch."""
    expected = sentences.encode(TEXTS)
    opened = library.SentenceTransformer(str(place), device="cpu")
    assert opened.max_seq_length == 20
    assert np.abs(opened.encode(TEXTS) - expected).max() < 1e-6
    assert np.abs(load(place).encode(TEXTS) - expected).max() < 1e-5
    plain = {"prompt": ""}
    assert np.abs(load(place).encode(TEXTS, **plain) - sentences.encode(TEXTS, **plain)).max() < 1e-5
    assert np.abs(expected - sentences.encode(TEXTS, **plain)).max() > 0.01


def score_alike(library, place, cross) -> None:
    """The model of a folder gives the scores of `cross`, in each way to run it."""
    expected = cross.predict(list(zip(QUERIES, PASSAGES, strict=True)))
    assert 0 < expected.min() < expected.max() < 1
    opened = library.CrossEncoder(str(place), device="cpu")
    assert opened.predict(list(zip(QUERIES, PASSAGES, strict=True))) == pytest.approx(expected, abs=1e-6)
    model, tokenizer, _ = open_model(place)
    for found in (load(place).predict(QUERIES, PASSAGES), predict(model, tokenizer, QUERIES, PASSAGES)):
        assert [each.score for each in found] == pytest.approx(expected, abs=1e-5)


# -- saving -----------------------------------------------------------------------------------


def test_a_sentence_transformer(library, sentences, tmp_path):
    done = fineprune.save_compact(sentences, tmp_path / "small")
    assert done.difference == 0
    assert done.density == pytest.approx(0.1016, abs=1e-4)
    answer_alike(library, tmp_path / "small", sentences)
    assert (
        json.loads((tmp_path / "small/fineprune.json").read_text())["sentence_model"] == "SentenceTransformer"
    )
    assert 'SentenceTransformer("this folder")' in (tmp_path / "small/README.md").read_text()
    assert type(fineprune.load(tmp_path / "small")).__name__ == "BertModel"
    again = fineprune.save_compact(sentences, tmp_path / "small", values="int8")  # over its module folders
    assert 0 < again.difference < 0.1


def test_a_cross_encoder(library, cross, tmp_path):
    assert fineprune.save_compact(cross, tmp_path / "small").difference == 0
    score_alike(library, tmp_path / "small", cross)


def test_a_cross_encoder_scores_no_single_texts(saved):
    model, tokenizer, _ = open_model(saved.cross)
    message = "predict: the model was trained on pairs of texts; give the second text of each"
    with pytest.raises(EngineError, match=message):
        load(saved.cross).predict(QUERIES)
    with pytest.raises(FinepruneError, match=message):
        predict(model, tokenizer, QUERIES)


def test_a_score_that_is_the_logit(library, bodies, tmp_path):
    cross = library.CrossEncoder(str(bodies / "head"), device="cpu", activation_fn=torch.nn.Identity())
    fineprune.save_compact(cross, tmp_path / "small")
    expected = cross.predict(list(zip(QUERIES, PASSAGES, strict=True)))
    assert expected.max() < 0
    assert [found.score for found in load(tmp_path / "small").predict(QUERIES, PASSAGES)] == pytest.approx(
        expected, abs=1e-5
    )


def test_one_that_is_being_pruned_and_one_that_was_shrunk(library, sentences, tmp_path):
    model = copy.deepcopy(sentences).train()
    structure = {"attention": "head", "feed_forward": "neuron"}
    config = fineprune.PruningConfig(
        "magnitude", density=0.5, structure=structure, warmup=0, cooldown=0, scope="global"
    )
    pruner = fineprune.prepare(model, config, 2)
    pruner.step()
    pruner.step()
    fineprune.save_compact(pruner, tmp_path / "small")
    assert model.training
    fineprune.finalize(model)
    expected = model.encode(TEXTS)
    assert load(tmp_path / "small").encode(TEXTS) == pytest.approx(expected, abs=1e-5)
    assert inspect_folder(tmp_path / "small").stats.kept == fineprune.summary(model).kept
    before = fineprune.costs(model).weights
    shrunk = fineprune.shrink(model)
    assert sum(len(kept.units) for kept in shrunk.neurons) < 64
    assert fineprune.costs(model).weights < before
    fineprune.save_compact(model, tmp_path / "shrunk")
    opened = library.SentenceTransformer(str(tmp_path / "shrunk"), device="cpu")
    for found in (model.encode(TEXTS), opened.encode(TEXTS), load(tmp_path / "shrunk").encode(TEXTS)):
        assert found == pytest.approx(expected, abs=1e-4)


def test_what_is_written_is_compared(sentences, tmp_path, monkeypatch):
    def forgetful(folder, **_):
        sentences[0].save(folder)
        for name in ("modules.json", "config_sentence_transformers.json"):
            shutil.copyfile(tmp_path / "whole" / name, Path(folder) / name)
        (Path(folder) / "1_Pooling").mkdir()
        settings = {"embedding_dimension": 16, "pooling_mode": ["max", "mean"]}
        (Path(folder) / "1_Pooling" / "config.json").write_text(json.dumps(settings))

    sentences.save_pretrained(str(tmp_path / "whole"), create_model_card=False)
    monkeypatch.setattr(sentences, "save_pretrained", forgetful)
    with pytest.raises(
        FinepruneError, match=r"the written model answers differently, by .*nothing was saved; .*tokenizer"
    ):
        fineprune.save_compact(sentences, tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_the_files_of_modules_are_under_the_checksum(sentences, tmp_path):
    fineprune.save_compact(sentences, tmp_path / "small")
    file = tmp_path / "small/1_Pooling/config.json"
    file.write_text(file.read_text().replace("max", "cls"))
    with pytest.raises(EngineError, match=r"1_Pooling/config\.json: does not match its checksum"):
        load(tmp_path / "small")


# -- folders ----------------------------------------------------------------------------------


@pytest.fixture
def inside(saved, tmp_path) -> Path:
    """The older layout: the transformer in a folder of its own."""
    shutil.copytree(saved.sentences, tmp_path / "inside")
    (tmp_path / "inside/0_Transformer").mkdir()
    for name in OF_THE_TRANSFORMER:
        (tmp_path / "inside" / name).rename(tmp_path / "inside/0_Transformer" / name)
    file = tmp_path / "inside/modules.json"
    modules = json.loads(file.read_text())
    modules[0]["path"] = "0_Transformer"
    file.write_text(json.dumps(modules))
    return tmp_path / "inside"


@pytest.mark.parametrize("write", [compact_folder, dense_folder])
def test_folders_of_both_layouts(write, library, saved, inside, sentences, tmp_path):
    for number, folder in enumerate((saved.sentences, inside)):
        write(folder, tmp_path / f"out{number}")
        answer_alike(library, tmp_path / f"out{number}", sentences)
    assert inspect_folder(inside).stats.kept == fineprune.summary(sentences).kept
    assert type(fineprune.load(inside)).__name__ == "BertModel"


def test_a_config_that_names_the_class_of_the_pre_training(
    library, saved, inside, sentences, tmp_path, monkeypatch
):
    whole = shutil.copytree(saved.sentences, tmp_path / "whole")
    for folder, place in ((whole, whole), (inside, inside / "0_Transformer")):
        config = json.loads((place / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
        (place / "config.json").write_text(json.dumps(config))
        compact_folder(folder, tmp_path / f"{folder.name}-small")
        answer_alike(library, tmp_path / f"{folder.name}-small", sentences)
        assert type(fineprune.load(folder)).__name__ == "BertModel"
    # Without the other modules it is what it says, and has no head.
    (whole / "modules.json").rename(tmp_path / "modules.json")
    with pytest.raises(FinepruneError, match="of the BertForMaskedLM are not in its files"):
        fineprune.load(whole)
    # What follows is no pooling, and reads the head: a SparseEncoder's, or a cross-encoder of older files.
    for others in (
        "[]",
        '[{"type": "sentence_transformers.sparse_encoder.models.SpladePooling", "path": "1_P"}]',
    ):
        modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}, *json.loads(others)]
        (whole / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(FinepruneError, match="of the BertForMaskedLM are not in its files"):
            fineprune.load(whole)
    (tmp_path / "modules.json").rename(whole / "modules.json")
    monkeypatch.setattr(loading, "find_model", str)  # the hub is a folder here
    assert type(open_model(whole, hub=True).model).__name__ == "BertModel"
    monkeypatch.setattr(loading, "find_model", lambda _: str(saved.cross))
    assert type(open_model("a/model", hub=True).model).__name__ == "BertForSequenceClassification"


@pytest.mark.parametrize("write", [compact_folder, dense_folder])
def test_folders_of_cross_encoders(write, library, saved, cross, tmp_path):
    write(saved.cross, tmp_path / "out")
    score_alike(library, tmp_path / "out", cross)


def test_an_exported_graph_is_pooled_by_the_modules_beside_it(library, saved, sentences, tmp_path):
    pytest.importorskip("onnxruntime")
    from transformers.exporters import ExportedModel

    class Graph(torch.nn.Module):
        def __init__(self, folder):
            super().__init__()
            self.run = ExportedModel.from_pretrained(folder, device="cpu")
            self.config = self.run.config

        def forward(self, return_dict=True, **inputs):
            return self.run(**inputs)

    export_folder(saved.sentences, tmp_path / "onnx", "onnx")
    assert (tmp_path / "onnx/1_Pooling/config.json").is_file()
    model = library.SentenceTransformer(str(saved.sentences), device="cpu")
    model[0].model = Graph(tmp_path / "onnx")
    assert np.abs(model.encode(TEXTS) - sentences.encode(TEXTS)).max() < 1e-5
    with pytest.raises(FinepruneError, match="SentenceTransformer: export its transformer"):
        fineprune.export_model(sentences, None, tmp_path / "other", "onnx")


# -- the engine in place ----------------------------------------------------------------------


def test_accelerate(sentences, cross):
    model, judge = fineprune.accelerate(copy.deepcopy(sentences)), fineprune.accelerate(copy.deepcopy(cross))
    assert any(type(module).__name__ == "EncoderModule" for module in model.modules())
    assert np.abs(model.encode(TEXTS) - sentences.encode(TEXTS)).max() < 1e-5
    pairs = list(zip(QUERIES, PASSAGES, strict=True))
    assert judge.predict(pairs) == pytest.approx(cross.predict(pairs), abs=1e-5)
    with pytest.raises(FinepruneError, match="save it before accelerate"):
        fineprune.save_compact(model, "nowhere")


# -- refusals ---------------------------------------------------------------------------------


def refused(call, *parts: str) -> None:
    with pytest.raises(FinepruneError) as error:
        call()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_models_with_other_modules(library, sentences, cross, tmp_path):
    modules = library.base.modules
    dense = library.SentenceTransformer(modules=[*sentences, modules.Dense(32, 4)], device="cpu")
    bare = library.SentenceTransformer(modules=[sentences[0]], device="cpu")
    judge = library.CrossEncoder(modules=[cross[0], torch.nn.Identity()], device="cpu")
    for model, said in (
        (dense, "has the modules Transformer, Pooling, Normalize, Dense; allowed are one Transformer, one"),
        (bare, "SentenceTransformer: has the modules Transformer; allowed"),
        (judge, "CrossEncoder: has the modules Transformer, torch.nn.modules.linear.Identity; allowed"),
    ):
        refused(lambda model=model: fineprune.save_compact(model, tmp_path / "no"), said)
    refused(lambda: fineprune.save_delta(sentences, tmp_path / "no", "base"), "a transformers model")
    assert list(tmp_path.iterdir()) == []


HUGE = "1" * 400
FOLDERS = [
    ("modules.json", lambda text: "{}", "expected a list of modules"),
    ("modules.json", lambda text: f"[{HUGE}]", "more than any setting has"),
    ("modules.json", lambda text: text.replace("1_Pooling", ".."), "'..' is not the name of a folder in it"),
    ("modules.json", lambda text: text.replace("1_Pooling", "/etc"), "'/etc' is not the name of a folder"),
    ("modules.json", lambda text: text.replace("Normalize", "Dense"), "Transformer, Pooling, Dense; allowed"),
    (
        "modules.json",
        lambda text: text.replace("sentence_transformers.base.modules.transformer", "custom_st"),
        "has the modules custom_st.Transformer, Pooling",
    ),
    ("1_Pooling/config.json", lambda text: None, "has no 1_Pooling/config.json; copy it"),
    ("1_Pooling/config.json", lambda text: f'{{"embedding_dimension": {HUGE}}}', "more than any setting has"),
    ("config_sentence_transformers.json", lambda text: '{"model_type": 3}', "names no class of models"),
    (
        "config_sentence_transformers.json",
        lambda text: '{"model_type": "SparseEncoder"}',
        "is a SparseEncoder",
    ),
]


@pytest.mark.parametrize(("name", "change", "said"), FOLDERS)
def test_folders_that_are_refused(name, change, said, saved, tmp_path):
    shutil.copytree(saved.sentences, tmp_path / "in")
    file = tmp_path / "in" / name
    text = change(file.read_text())
    file.unlink() if text is None else file.write_text(text)
    refused(lambda: compact_folder(tmp_path / "in", tmp_path / "out"), said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("settings", "said"), [
    ({"activation_fn": "torch.nn.modules.activation.Tanh"}, "'torch.nn.modules.activation.Tanh'; allowed"),
    ({"activation_fn": "mine.Sigmoid"}, "is 'mine.Sigmoid'; allowed"),
    ({"activation_fn": 3}, "is 3; allowed"),
    ({"default_prompt_name": "query"}, "has a default_prompt_name"),
])  # fmt: skip
def test_cross_encoders_that_the_runtime_refuses(settings, said, saved, tmp_path):
    shutil.copytree(saved.cross, tmp_path / "in")
    (tmp_path / "in/config_sentence_transformers.json").write_text(
        json.dumps({"model_type": "CrossEncoder"} | settings)
    )
    with pytest.raises(EngineError, match=said):
        load(tmp_path / "in")


def test_older_settings_of_cross_encoders(saved, tmp_path):
    shutil.copytree(saved.cross, tmp_path / "in")
    for name in ("modules.json", "config_sentence_transformers.json"):
        (tmp_path / "in" / name).unlink()
    config = json.loads((tmp_path / "in/config.json").read_text())
    scores = {}
    for key, value in (
        ("sentence_transformers", {"activation_fn": "torch.nn.modules.activation.Sigmoid"}),
        ("sbert_ce_default_activation_function", "torch.nn.modules.linear.Identity"),
        ("other", 1),
    ):
        (tmp_path / "in/config.json").write_text(json.dumps(config | {key: value}))
        scores[key] = load(tmp_path / "in").predict(QUERIES, PASSAGES)[0].score
    logit = scores["other"]
    assert scores["sbert_ce_default_activation_function"] == logit < 0
    assert scores["sentence_transformers"] == pytest.approx(1 / (1 + np.exp(-logit)))


def test_answers_leave_the_model_as_it_was(sentences, cross):
    state = torch.get_rng_state()
    for model in (sentences, cross):
        model.train()
        assert all(bool(tensor.isfinite().all()) for tensor in answers(model))
        assert model.training
        model.eval()
    assert torch.equal(state, torch.get_rng_state())
