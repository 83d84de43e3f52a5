"""Vectors of sentences without torch: those of sentence-transformers, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from runtime.models import KINDS, TEXTS, make_model, make_tokenizer, save

from fineprune import save_compact
from fineprune_runtime import EngineError, dtypes
from fineprune_runtime.loading import load
from fineprune_runtime.pooling import Pooling
from fineprune_runtime.sentences import SentencePredictor

WORDS = ["a good film", "bad", "", "very very good film the Anna London " * 9, "Anna went to London ?"] * 3


def write(folder, name, content):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def describe(folder, pooling, normalize=False, **more):
    """Write the files of sentence-transformers 2 beside a model."""
    kinds = ["Transformer", "Pooling", *["Normalize"] * normalize]
    paths = ["", "1_Pooling", "2_Normalize"]
    write(folder, "modules.json", [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=False))
    ])  # fmt: skip
    write(folder, "1_Pooling/config.json", {"word_embedding_dimension": 16, **pooling})
    for name, content in more.items():
        write(folder, f"{name}.json", content)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder of a pruned base MPNet without those files; its model and tokenizer."""
    folder = tmp_path_factory.mktemp("plain")
    model, tokenizer = make_model("mpnet", "text").mpnet, make_tokenizer("mpnet")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


@pytest.fixture
def folder(plain, tmp_path):
    shutil.copytree(plain[0], tmp_path / "model")
    describe(tmp_path / "model", {"pooling_mode_mean_tokens": True})
    return tmp_path / "model"


@torch.no_grad()
def tokens_of(plain, text, length=38):
    """The tokens of a text as torch has them, (tokens, 16)."""
    _, model, tokenizer = plain
    batch = tokenizer([text], truncation=True, max_length=length, return_tensors="pt")
    return model(**batch).last_hidden_state[0]


@pytest.mark.parametrize("flags", [
    ["mean_tokens"], ["cls_token"], ["max_tokens"], ["mean_sqrt_len_tokens"],
    ["mean_tokens", "cls_token", "max_tokens"],
])  # fmt: skip
@pytest.mark.parametrize("normalize", [False, True])
def test_vectors_by_hand(flags, normalize, plain, folder):
    describe(folder, {f"pooling_mode_{flag}": True for flag in flags}, normalize)
    found = load(folder).encode(WORDS)
    assert found.dtype == np.float32
    for vector, text in zip(found, WORDS, strict=True):
        x = tokens_of(plain, text)
        parts = {
            "cls_token": x[0],  # in the order in which sentence-transformers puts them
            "max_tokens": x.amax(0),
            "mean_tokens": x.sum(0) / len(x),
            "mean_sqrt_len_tokens": x.sum(0) / len(x) ** 0.5,
        }
        expected = torch.cat([part for flag, part in parts.items() if flag in flags])
        if normalize:
            expected = expected / expected.norm()
        assert np.abs(vector - expected.numpy()).max() < 1e-5


@pytest.mark.parametrize("dtype", dtypes())
def test_the_batch_does_not_change_a_vector(dtype, folder):
    model = load(folder, dtype=dtype, threads=1)
    expected = model.encode(WORDS)
    for size in (1, 4, 100):
        assert model.encode(WORDS, batch_size=size).tobytes() == expected.tobytes()
    assert model.encode(WORDS[::-1])[::-1].tobytes() == expected.tobytes()
    assert np.stack(model.predict(WORDS)).tobytes() == expected.tobytes()
    assert model.encode([]).shape == model.network(np.zeros((0, 3))).shape == (0, 16)


def test_what_sentence_transformers_answers(plain, folder):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    prompts = {"query": "very ", "document": ""}
    describe(
        folder,
        {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
        normalize=True,
        sentence_bert_config={"max_seq_length": 20, "do_lower_case": True},
        config_sentence_transformers={"prompts": prompts, "default_prompt_name": "query"},
    )
    theirs, ours = sentence_transformers.SentenceTransformer(str(folder), device="cpu"), load(folder)
    for how in ({}, {"prompt_name": "document"}, {"prompt": "the "}):
        assert np.abs(theirs.encode(WORDS, **how) - ours.encode(WORDS, **how)).max() < 1e-5
    again = folder.with_name("again")  # as their present version writes it
    theirs.save(str(again))
    assert load(again).encode(WORDS).tobytes() == ours.encode(WORDS).tobytes()
    nothing = {"prompts": {"query": None}, "default_prompt_name": "query"}
    write(again, "config_sentence_transformers.json", nothing)
    theirs = sentence_transformers.SentenceTransformer(str(again), device="cpu")
    assert np.abs(theirs.encode(WORDS) - load(again).encode(WORDS)).max() < 1e-5


@pytest.mark.parametrize("size", [None, 5, 20, 100])
def test_the_first_numbers_of_a_vector(size, folder):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    describe(
        folder,
        {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
        normalize=True,
        sentence_bert_config={"max_seq_length": 20},
        config_sentence_transformers={"truncate_dim": size},
    )
    theirs, ours = sentence_transformers.SentenceTransformer(str(folder), device="cpu"), load(folder)
    found = ours.encode(WORDS)
    assert found.shape == (len(WORDS), min(size or 32, 32))
    assert np.abs(theirs.encode(WORDS) - found).max() < 1e-5
    assert ours.encode([]).shape == (0, found.shape[1])
    if size == 5:
        assert (np.linalg.norm(found, axis=1) < 0.9).all()  # the norm was 1 before the cut


@pytest.mark.parametrize("kind", KINDS)
def test_a_compact_folder_of_each_architecture(kind, tmp_path):
    cls = getattr(transformers, f"{KINDS[kind][0]}Model")
    made = make_model(kind, "text")
    base = cls(made.config).eval()  # with a pooler, where it has one
    base.load_state_dict(made.base_model.state_dict(), strict=False)
    tokenizer = make_tokenizer(kind)
    save_compact(base, tmp_path / "small", tokenizer)
    describe(tmp_path / "small", {"pooling_mode_mean_tokens": True})
    model = load(tmp_path / "small")
    for vector, text in zip(model.encode(TEXTS), TEXTS, strict=True):
        expected = tokens_of((None, base, tokenizer), text, model.max_length).mean(0)
        assert np.abs(vector - expected.numpy()).max() < 1e-5


def test_the_encoder_of_a_model_with_another_head(plain, tmp_path):
    # As all-mpnet-base-v2 has it, or with the base model's name in front of the weights.
    _, model, tokenizer = plain
    whole = transformers.MPNetForMaskedLM(model.config).eval()
    whole.mpnet.load_state_dict(model.state_dict())
    whole.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    describe(tmp_path, {"pooling_mode_cls_token": True})
    found = load(tmp_path).encode(["a good film"])[0]
    assert np.abs(found - tokens_of(plain, "a good film")[0].numpy()).max() < 1e-5


@pytest.mark.parametrize("kind", ["bert", "roberta"])  # older versions name the architecture
def test_lengths(plain, folder, kind):
    write(folder, f"sentence_{kind}_config.json", {"max_seq_length": 9})
    model = load(folder)
    assert isinstance(model, SentencePredictor)
    long = WORDS[3]
    for asked, length in ((None, 9), (20, 20)):
        expected = tokens_of(plain, long, length).mean(0).numpy()
        assert np.abs(model.encode([long], max_length=asked)[0] - expected).max() < 1e-5
    assert load(folder, threads=np.int64(2)).encoder.threads == 2
    with pytest.raises(EngineError, match="max_length is 39; this model takes 3 to 38 tokens"):
        model.encode([long], max_length=39)


def test_a_text_without_any_token():
    pooling = Pooling(("mean", "max"), normalize=True, with_prompt=True)
    assert pooling(np.ones((1, 2, 3), np.float32), np.zeros((1, 2))).tolist() == [[0] * 6]
    short = pooling._replace(size=4)
    assert short(np.ones((1, 2, 3), np.float32), np.zeros((1, 2))).tolist() == [[0] * 4]
    assert pooling(np.full((1, 1, 2), 3, np.float32), None)[0].tolist() == [0.5] * 4


def test_files_that_are_not_there(plain, folder):
    with pytest.raises(EngineError, match=r"architectures .*MPNetModel.*modules.json, 1_Pooling/config.json"):
        load(plain[0])
    shutil.rmtree(folder / "1_Pooling")
    with pytest.raises(EngineError, match=r"has no 1_Pooling/config.json, .*copy it"):
        load(folder)


MEAN = {"pooling_mode_mean_tokens": True}


@pytest.mark.parametrize(("name", "content", "message"), [
    ("modules.json", {}, "expected a list of modules"),
    ("modules.json", [], "has the modules none; allowed are one Transformer, one Pooling"),
    ("modules.json", [{"type": 3}], "a module has the type 3"),
    ("1_Pooling/config.json", {**MEAN, "pooling_mode_lasttoken": True}, r"pools by \['mean', 'lasttoken'\]"),
    ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "pools by 'weightedmean'; allowed are cls,"),
    ("1_Pooling/config.json", {}, r"pools by \[\]"),
    ("1_Pooling/config.json", {"pooling_mode": [["mean"]]}, "pools by "),
    ("1_Pooling/config.json", {**MEAN, "word_embedding_dimension": 8}, "of 8 features, and the model has 16"),
    ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "Normalize of 'token_embeddings'"),
    ("sentence_bert_config.json", {"max_seq_length": "9"}, "max_seq_length is '9'"),
    ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "is 'fill-mask', expected"),
    ("config_sentence_transformers.json", {"prompts": {"a": 1}}, "expected names and texts"),
    ("config_sentence_transformers.json", {"truncate_dim": 0}, "is 0, expected a whole number, 1 or more"),
    ("config_sentence_transformers.json", {"truncate_dim": True}, "truncate_dim in .* is True"),
    ("config_sentence_transformers.json", {"truncate_dim": 8.0}, "is 8.0, expected a whole number"),
    ("config_sentence_transformers.json", {"default_prompt_name": "a"}, "allowed are none: the model has no"),
    ("config_sentence_transformers.json", {"default_prompt_name": ["a"]}, r"is \['a'\], allowed are none"),
])  # fmt: skip
def test_settings_that_cannot_be(name, content, message, folder):
    describe(folder, MEAN, normalize=True)
    write(folder, name, content)
    with pytest.raises(EngineError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("place", "change", "message"), [
    (2, {"type": "sentence_transformers.models.Dense"}, "Transformer, Pooling, Dense; allowed"),
    (2, {"type": "other.Normalize"}, "Transformer, Pooling, other.Normalize; allowed"),
    (0, {"type": "sentence_transformers.models.WordEmbeddings"}, "modules WordEmbeddings, Pooling"),
    (0, {"path": "0_Transformer"}, "the transformer is in '0_Transformer'"),
    (1, {"path": "../1_Pooling"}, "'../1_Pooling' is not the name of a folder"),
    (1, {"path": None}, "None is not the name of a folder"),
])  # fmt: skip
def test_other_modules(place, change, message, folder):
    describe(folder, MEAN, normalize=True)
    modules = json.loads((folder / "modules.json").read_text())
    modules[place].update(change)
    write(folder, "modules.json", modules)
    with pytest.raises(EngineError, match=message):
        load(folder)


def test_prompts_that_cannot_be(folder):
    write(folder, "config_sentence_transformers.json", {"prompts": {"query": "very "}})
    for name in ("other", ["query"]):
        with pytest.raises(EngineError, match=r"prompt_name is .*, allowed are 'query'"):
            load(folder).encode(["a"], prompt_name=name)
    describe(folder, {**MEAN, "include_prompt": False})
    with pytest.raises(EngineError, match="include_prompt is false"):
        load(folder).encode(["a"], prompt_name="query")
    with pytest.raises(EngineError, match="encode: prompt is 3, expected a text"):
        load(folder).encode(["a"], prompt=3)
    with pytest.raises(EngineError, match="encode: texts is one string 'a'; give a list"):
        load(folder).encode("a")
    assert load(folder).encode(["a"]).shape == (1, 16)


def test_other_calls(folder, tmp_path):
    with pytest.raises(EngineError, match="predict: this model embeds single texts; leave pairs out"):
        load(folder).predict(["a"], ["b"])
    with pytest.raises(EngineError, match="texts is one string 'a'"):
        load(folder).encode("a")
    save(tmp_path / "small", "bert", "text")
    with pytest.raises(EngineError, match="encode: this model has the head of a task"):
        load(tmp_path / "small").encode(["a"])
