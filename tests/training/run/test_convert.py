"""From the folder of a run, or of another program, to what is shipped."""

import json
import shutil
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file
from support import tiny_bert
from transformers import AutoTokenizer, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from fineprune import FinepruneError, PruningConfig, load, save_compact, summary
from fineprune.checkpoint import packing
from fineprune.checkpoint.loading import open_model
from fineprune.checkpoint.packing import Packing
from fineprune.pruning.targets import find_targets
from fineprune.training.run.convert import compact_folder, dense_folder, export_folder, smaller_tables
from fineprune.training.run.evaluate import evaluate_run

COMPACT = {
    "README.md",
    "config.json",
    "fineprune.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
PLAIN = COMPACT - {"README.md", "fineprune.json"}
TEXTS = ["good film", "a very bad b film", "b"]


def logits(model, tokenizer, texts=TEXTS):
    with torch.no_grad():
        return model(**tokenizer(texts, padding=True, return_tensors="pt")).logits


def about(folder: Path) -> dict:
    return json.loads((folder / "fineprune.json").read_text())


@pytest.fixture
def pictures(tmp_path):
    """A pruned ViT and the settings of its image processor, which takes torchvision to load."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8,
        patch_size=4, initializer_range=0.5,
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        for module in find_targets(model).values():
            module.weight[:, ::2] = 0
    model.save_pretrained(tmp_path / "vit")
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    (tmp_path / "vit/preprocessor_config.json").write_text(json.dumps(settings))
    return tmp_path / "vit"


def masked_bert(folder, model, tokenizer, **settings):
    """As the original scripts save a movement run; row i of each matrix has the score -i."""
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    theirs = {"model_type": "masked_bert", "architectures": ["MaskedBertForSequenceClassification"]}
    settings = theirs | {"pruning_method": "topK", "mask_init": "constant", "mask_scale": 0.0} | settings
    (folder / "config.json").write_text(json.dumps(config | settings))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 32}))
    state = model.state_dict()
    for name, module in find_targets(model).items():
        rows, columns = module.weight.shape
        state[f"{name}.mask_scores"] = -torch.arange(float(rows))[:, None].expand(rows, columns).contiguous()
    torch.save(state, folder / "pytorch_model.bin")
    return folder


# ---- compact --------------------------------------------------------------------------------------------


def test_compact(finished, tmp_path, files_in, names, same_weights):
    before = files_in(finished)
    done = compact_folder(finished, tmp_path / "new" / "small")
    assert names(done.folder) == COMPACT
    assert done.density == 0.25
    assert done.difference == 0
    assert done.bytes == (done.folder / "model.safetensors").stat().st_size
    (model, words), (small, theirs) = open_model(finished)[:2], open_model(done.folder)[:2]
    assert same_weights(model, small)
    assert torch.equal(logits(model, words), logits(small, theirs))
    assert evaluate_run(finished, model_folder=done.folder) == evaluate_run(finished)
    assert files_in(finished) == before

    results, said = json.loads((finished / "results.json").read_text()), about(done.folder)
    assert said["scores"] == results["scores"]
    assert said["pruning"] == PruningConfig("movement", density=0.25).to_dict()
    assert said["command"] == "fineprune compact run small --values float32 --embeddings keep"
    card = (done.folder / "README.md").read_text()
    assert "pruned by movement pruning" in card
    assert said["command"] in card


def test_types_and_a_vocabulary(finished, tmp_path):
    (tmp_path / "texts.txt").write_text("good film\r\n\n  \nbad film\n", encoding="utf-8")
    done = compact_folder(finished, tmp_path / "small", Packing("int8", "int8"), texts=tmp_path / "texts.txt")
    (model, words), (small, fewer) = open_model(finished)[:2], open_model(done.folder)[:2]
    # 5 special tokens, the three of the texts, and "a" and "b" as single characters; "very" is gone
    assert set(words.get_vocab()) - set(fewer.get_vocab()) == {"very"}
    assert small.config.vocab_size == len(fewer) == len(words) - 1 == 10
    assert 0 < done.difference < 0.05
    texts = ["good film", "bad film"]
    worst = (logits(model, words, texts) - logits(small, fewer, texts)).abs().max()
    assert worst < 0.05 * logits(model, words, texts).abs().max()
    said = about(done.folder)
    assert (said["values"], said["embeddings"]) == ("int8", "int8")
    assert said["command"].endswith("--values int8 --embeddings int8 --vocabulary texts.txt")


def test_a_model_folder_and_one_that_is_compact_already(finished, tmp_path, same_weights):
    model = open_model(finished).model
    one = compact_folder(finished / "model", tmp_path / "one")
    assert about(one.folder)["scores"] is None
    two = compact_folder(one.folder, tmp_path / "two")
    assert (two.bytes, two.difference) == (one.bytes, 0)
    assert same_weights(model, load(two.folder))


def test_a_run_that_was_not_pruned(copied, tmp_path):
    results = json.loads((copied / "results.json").read_text())
    results["recipe"]["pruning"] = None
    (copied / "results.json").write_text(json.dumps(results))
    assert about(compact_folder(copied, tmp_path / "small").folder)["pruning"] is None


def test_the_scores_of_the_dense_run_are_on_the_card(copied, tmp_path):
    results = json.loads((copied / "results.json").read_text())
    assert about(compact_folder(copied, tmp_path / "out").folder)["dense_scores"] is None
    dense = results | {"recipe": results["recipe"] | {"pruning": None}, "scores": {"accuracy": 0.75}}
    (copied.parent / "dense").mkdir()
    (copied.parent / "dense" / "results.json").write_text(json.dumps(dense))
    done = compact_folder(copied, tmp_path / "out")
    assert about(done.folder)["dense_scores"] == {"accuracy": 0.75}
    assert "| 0.7500 |" in (done.folder / "README.md").read_text()
    again = compact_folder(done.folder, tmp_path / "again")
    assert about(again.folder)["dense_scores"] == {"accuracy": 0.75}


def test_large_tables_are_told(tmp_path):
    """20,000 words of 16 float32 take 1.28 MB, as int8 0.32 MB and their scales 0.08 MB."""
    model = tiny_bert(vocab_size=20_000).eval()
    with torch.no_grad():
        for module in find_targets(model).values():
            module.weight[:, ::2] = 0
    kept = save_compact(model, tmp_path / "kept")
    line = smaller_tables(kept)
    assert line.startswith("1.3 MB of it are embeddings; with --embeddings int8 it would take about 0.3 MB")
    packed = save_compact(model, tmp_path / "packed", embeddings="int8")
    assert 0.4e6 < packed.bytes < 0.45e6
    assert smaller_tables(packed) is None
    assert smaller_tables(kept._replace(bytes=999_999)) is None
    assert smaller_tables(kept._replace(bytes=3_000_000)) is None
    assert smaller_tables(kept._replace(folder=tmp_path)) is None


def test_into_the_place_of_the_model(copied, monkeypatch, files_in, names, same_weights):
    """All or nothing: a crash on the way leaves the run whole."""
    before, (model, words) = files_in(copied), open_model(copied)[:2]
    with monkeypatch.context() as patch:
        for ship in (compact_folder, dense_folder):
            patch.setattr(BertForSequenceClassification, "from_pretrained", second_load(stop))
            with pytest.raises(KeyboardInterrupt):
                ship(copied, copied / "model")
            patch.undo()
    assert files_in(copied) == before
    compact_folder(copied, copied / "model")
    assert names(copied / "model") == COMPACT
    assert names(copied) == {"metrics.jsonl", "model", "recipe.yaml", "results.json", "weights.npz"}
    again, theirs, _ = open_model(copied)
    assert torch.equal(logits(model, words), logits(again, theirs))
    dense_folder(copied, copied / "model")
    assert names(copied / "model") == PLAIN
    assert same_weights(model, open_model(copied).model)


def stop(_):
    raise KeyboardInterrupt


def second_load(then):
    """`from_pretrained`; the second call, of what was written, goes through `then`."""
    real, calls = BertForSequenceClassification.from_pretrained, []

    def load(*arguments, **values):
        calls.append(real(*arguments, **values))
        return then(calls[-1]) if len(calls) == 2 else calls[-1]

    return load


# ---- a delta, plain zeros -------------------------------------------------------------------------------


def test_a_delta(finished, pretrained, tmp_path, names, same_weights):
    done = compact_folder(finished, tmp_path / "delta", base=pretrained)
    assert names(done.folder) == PLAIN - {"model.safetensors"} | {"delta.safetensors", "fineprune.json"}
    stored = load_file(done.folder / "delta.safetensors")
    assert "bert.embeddings.word_embeddings.weight" not in stored  # frozen
    (model, words), (again, theirs) = open_model(finished)[:2], open_model(done.folder)[:2]
    assert same_weights(model, again)
    assert torch.equal(logits(model, words), logits(again, theirs))
    assert evaluate_run(finished, model_folder=done.folder) == evaluate_run(finished)
    whole = compact_folder(done.folder, tmp_path / "whole")
    assert same_weights(model, load(whole.folder))
    with pytest.raises(FinepruneError, match=r"embeddings='int8': a delta takes the base's"):
        compact_folder(finished, tmp_path / "no", Packing(embeddings="int8"), base=pretrained)
    (tmp_path / "texts.txt").write_text("a\n")
    with pytest.raises(FinepruneError, match=r"texts.txt: only a whole model with a tokenizer can lose"):
        compact_folder(finished, tmp_path / "no", base=pretrained, texts=tmp_path / "texts.txt")


def test_a_delta_over_its_base(finished, pretrained, tmp_path, files_in):
    base = Path(shutil.copytree(pretrained, tmp_path / "base"))
    before = files_in(base)
    with pytest.raises(FinepruneError, match="is the base, which the delta needs"):
        compact_folder(finished, base, base=str(base))
    assert files_in(base) == before


def test_dense_loads_without_fineprune(finished, tmp_path, same_weights, names):
    model, words, _ = open_model(finished)
    small = compact_folder(finished, tmp_path / "small").folder
    for name, folder in (("of the run", finished), ("of the compact one", small)):
        done = dense_folder(folder, tmp_path / name)
        assert names(done.folder) == PLAIN
        assert done.bytes == done.dense_bytes == (done.folder / "model.safetensors").stat().st_size
        assert (done.density, done.difference) == (0.25, 0)
        assert same_weights(model, load(done.folder))
    torch.save(logits(model, words), tmp_path / "expected.pt")
    code = (
        "import sys, torch;"
        "from transformers import AutoModelForSequenceClassification as M, AutoTokenizer as T;"
        "torch.set_num_threads(1); model, words = (kind.from_pretrained(sys.argv[1]) for kind in (M, T));"
        f"inputs = words({TEXTS!r}, padding=True, return_tensors='pt');"
        "print(torch.equal(model(**inputs).logits, torch.load(sys.argv[2])), 'fineprune' in sys.modules)"
    )
    done = forked.python(code, tmp_path / "of the compact one", tmp_path / "expected.pt")
    assert done.stdout.split() == ["True", "False"], done.stderr


@pytest.mark.parametrize("ship", [compact_folder, dense_folder])
def test_what_is_written_is_compared(ship, finished, tmp_path, monkeypatch, names):
    def changed(model):
        model.classifier.bias.data[0] += 1
        return model

    monkeypatch.setattr(BertForSequenceClassification, "from_pretrained", second_load(changed))
    with pytest.raises(FinepruneError, match=r"classifier.bias: the written file differs .* by 1 in"):
        ship(finished, tmp_path / "new")
    assert names(tmp_path) == set()


# ---- images ---------------------------------------------------------------------------------------------


def test_images_keep_their_processor(pictures, tmp_path, same_weights):
    """Copied unread: neither torchvision nor PIL is needed for it."""
    settings = (pictures / "preprocessor_config.json").read_bytes()
    made = [
        compact_folder(pictures, tmp_path / "small", Packing("int8")).folder,
        compact_folder(pictures, tmp_path / "delta", base=str(pictures)).folder,
        dense_folder(tmp_path / "small", tmp_path / "plain").folder,
    ]
    for folder in made:
        assert (folder / "preprocessor_config.json").read_bytes() == settings
        assert open_model(folder).tokenizer is None
        assert type(load(folder)) is ViTForImageClassification
    assert same_weights(load(pictures), load(tmp_path / "delta"))
    (tmp_path / "texts.txt").write_text("a\n")
    with pytest.raises(FinepruneError, match="only a whole model with a tokenizer"):
        compact_folder(pictures, tmp_path / "no", texts=tmp_path / "texts.txt")
    compact_folder(pictures, pictures)
    assert (pictures / "preprocessor_config.json").read_bytes() == settings


def test_images_are_exported(pictures, tmp_path, names):
    pytest.importorskip("onnx", reason="needs fineprune[export]")
    pytest.importorskip("onnxscript", reason="needs fineprune[export]")
    pytest.importorskip("onnxruntime", reason="needs fineprune[export]")
    done = export_folder(pictures, tmp_path / "onnx", "onnx")
    assert {"model.onnx", "config.json", "preprocessor_config.json"} <= names(done.path)
    assert done.difference < 1e-3


# ---- other programs -------------------------------------------------------------------------------------


def test_a_masked_bert(make_model, tokenizer, tmp_path, files_in, names, same_weights):
    model = make_model().eval()
    folder = masked_bert(tmp_path / "masked", model, tokenizer)
    before = files_in(folder)
    done = compact_folder(folder, tmp_path / "small", threshold=0.25)
    assert names(done.folder) == COMPACT
    # The highest quarter of the scores: the first quarter of each matrix' rows.
    with torch.no_grad():
        for module in find_targets(model).values():
            module.weight[len(module.weight) // 4 :] = 0
    small, words, _ = open_model(done.folder)
    assert summary(small).density == done.density == 0.25
    assert same_weights(model, small)
    assert torch.equal(logits(model, tokenizer), logits(small, words))
    assert about(done.folder)["command"].endswith("--embeddings keep --threshold 0.25")
    dense = dense_folder(folder, tmp_path / "plain", threshold=0.25).folder
    assert same_weights(model, open_model(dense).model)
    assert files_in(folder) == before
    for given, message in (
        ({}, "threshold is None; pass threshold="),
        ({"threshold": 2.0}, "threshold is 2.0"),
        ({"threshold": 0.25, "method": "l0"}, "method is 'l0', but the files say 'topK'"),
    ):
        with pytest.raises(FinepruneError, match=message):
            compact_folder(folder, tmp_path / "no", **given)
    with pytest.raises(FinepruneError, match="an ordinary checkpoint"):
        compact_folder(dense, tmp_path / "no", threshold=0.25)


def test_a_tokenizer_of_2020(make_model, tokenizer, tmp_path):
    """A vocab.txt, and nothing that names a class."""
    folder = masked_bert(tmp_path / "masked", make_model(), tokenizer)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    small = compact_folder(folder, tmp_path / "small", threshold=0.25).folder
    again = AutoTokenizer.from_pretrained(small)
    assert again(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]


def test_magnitude_leaves_no_scores(make_model, tokenizer, tmp_path):
    model = make_model()
    model.config.pruning_method = "magnitude"
    model.save_pretrained(tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "theirs")
    with pytest.raises(FinepruneError, match="threshold is None; pass threshold="):
        compact_folder(tmp_path / "theirs", tmp_path / "no")
    done = compact_folder(tmp_path / "theirs", tmp_path / "small", threshold=0.25)
    assert done.density == 0.25
    assert "pruning_method" not in json.loads((done.folder / "config.json").read_text())
    compact_folder(done.folder, tmp_path / "again")


@pytest.mark.parametrize("left", ["pruning_method", "sparse_args.json"])
def test_settings_left_beside_a_compiled_model(left, finished, copied, tmp_path, same_weights):
    """Masks are folded already; the file still names the method."""
    if left == "pruning_method":
        config = json.loads((copied / "model/config.json").read_text())
        (copied / "model/config.json").write_text(json.dumps(config | {"pruning_method": "topK"}))
    else:
        (copied / "model/sparse_args.json").write_text("{}")
    small = compact_folder(copied, tmp_path / "small").folder
    assert same_weights(load(finished / "model"), load(small))


def test_loading_says_nothing(finished, tmp_path, capfd):
    compact_folder(finished, tmp_path / "small")
    open_model(tmp_path / "small")
    assert capfd.readouterr() == ("", "")


def test_packed_and_saved_by_hand(finished, tmp_path):
    """What `compact` writes is what `save_compact` writes."""
    model, words, _ = open_model(finished)
    by_hand = save_compact(model, tmp_path / "hand", words).folder
    ours = compact_folder(finished, tmp_path / "ours").folder
    one, two = (load_file(folder / "model.safetensors") for folder in (by_hand, ours))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert packing.verify([ours / "model.safetensors"])["kept"] == 256
