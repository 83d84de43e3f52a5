"""`fineprune.load` opens any model folder, or says what is wrong with it."""

import json
import shutil

import forked
import pytest
import torch
from transformers import BertForSequenceClassification, BertForTokenClassification

import fineprune
from fineprune import FinepruneError
from fineprune.checkpoint import loading
from fineprune.checkpoint.loading import load, open_model, to_dense
from fineprune.checkpoint.packing import PackedLinear
from fineprune.pruning.probe import outputs, probe_inputs


def test_plain_and_compact_folders(compact, make_pruned, same_weights, tmp_path):
    model = make_pruned()
    model.save_pretrained(tmp_path / "plain")
    for folder in (compact, str(compact), tmp_path / "plain"):
        loaded = load(folder)
        assert type(loaded) is BertForSequenceClassification
        assert not loaded.training
        assert same_weights(model, loaded)
    assert load(compact, dtype=torch.float16, device_map="cpu").dtype == torch.float16
    assert fineprune.load is load
    with pytest.raises(FinepruneError, match="is a whole model and needs no base"):
        load(compact, base=tmp_path / "plain")


def test_packed_it_is_small_and_answers_alike(make_pruned, architecture, same_answers, tmp_path):
    model = make_pruned(architecture)
    folder = fineprune.save_compact(model, tmp_path / "m").folder
    packed, dense = load(folder, packed=True), load(folder)
    kept = [module for module in packed.modules() if isinstance(module, PackedLinear)]
    assert len(kept) == len(fineprune.summary(model).layers)
    assert all(layer.weight.dtype == torch.int8 and not layer.weight.requires_grad for layer in kept)
    assert same_answers(dense, packed)
    for dtype in (torch.float16, torch.bfloat16):
        assert same_answers(load(folder, dtype=dtype), load(folder, packed=True, dtype=dtype))
    sizes = [sum(entry.nbytes for entry in one.parameters()) for one in (dense, packed)]
    assert sizes[1] < sizes[0]


def test_a_packed_model_can_be_cast_and_keeps_its_blobs(compact, make_pruned, same_answers, tmp_path):
    model, packed = make_pruned(), load(compact, packed=True)
    assert same_answers(make_pruned().half(), packed.half())
    packed.float().save_pretrained(tmp_path / "again")
    name = "bert.encoder.layer.1.output.dense"
    assert torch.equal(load(tmp_path / "again").get_submodule(name).weight, model.get_submodule(name).weight)


def test_to_dense_writes_what_a_process_without_fineprune_opens(compact, make_pruned, tmp_path):
    model, loaded = make_pruned(), load(compact)
    assert to_dense(loaded) is loaded
    loaded.save_pretrained(tmp_path / "plain")
    assert {path.name for path in (tmp_path / "plain").iterdir()} == {"config.json", "model.safetensors"}
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())
    torch.save((probe_inputs(model), outputs(model, probe_inputs(model))), tmp_path / "expected.pt")
    done = forked.python(
        "import sys, torch; from transformers import AutoModelForSequenceClassification as A;"
        "torch.set_num_threads(1); inputs, expected = torch.load(sys.argv[2]);"
        "print(torch.equal(A.from_pretrained(sys.argv[1])(**inputs).logits, expected[0]));"
        "print('fineprune' in sys.modules)",
        tmp_path / "plain",
        tmp_path / "expected.pt",
    )
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_to_dense_of_others(compact, make_pruned):
    model = make_pruned()
    assert to_dense(model) is model
    packed = load(compact, packed=True)
    with pytest.raises(FinepruneError, match="load it without packed=True"):
        to_dense(packed)


def test_the_folder_of_a_run(compact, tmp_path):
    shutil.copytree(compact, tmp_path / "run" / "model")
    with pytest.raises(FinepruneError, match=r"no model in it, config.json .*; name .*model, which is one"):
        load(tmp_path / "run")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "no model in it, config.json is missing"),
        ("{", "names no architecture"),
        ("[]", "names no architecture"),
        ("\xff", "names no architecture"),
        ("{}", "names no architecture"),
        ('{"architectures": []}', "names no architecture"),
        ('{"architectures": ["A", "B"]}', "names no architecture"),
        ('{"architectures": [7]}', "names no architecture"),
        ('{"architectures": ["BertForPruning"]}', "transformers has no 'BertForPruning'"),
        ('{"architectures": ["pipeline"]}', "'pipeline' is no model"),
        ('{"architectures": ["BertTokenizer"]}', "'BertTokenizer' is no model"),
    ],
)
def test_no_model(config, message, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_bytes(config.encode("latin-1"))
    with pytest.raises(FinepruneError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_file_and_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in ("file", "nothing"):
        with pytest.raises(FinepruneError, match=f"{place}: no model in it"):
            load(tmp_path / place)


@pytest.mark.parametrize("content", [None, b"", b"\x00" * 50])
def test_plain_weights_that_are_damaged(content, make_pruned, tmp_path):
    make_pruned().save_pretrained(tmp_path)
    if content is None:
        (tmp_path / "model.safetensors").unlink()
    else:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(FinepruneError, match="cannot load the model"):
        load(tmp_path)


def test_compact_weights_that_are_damaged(compact, change_json):
    change_json(compact / "config.json", vocab_size=60)
    with pytest.raises(FinepruneError, match=r"You set `ignore_mismatched_sizes`|the checkpoint holds"):
        load(compact)
    file = compact / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FinepruneError, match="cut off or damaged"):
        load(compact)


# -- open_model -------------------------------------------------------------------------------------------


@pytest.fixture
def words(tokenizer):
    """`words(folder)`: put the tokenizer of the tests in a model folder."""
    return lambda folder: (tokenizer.save_pretrained(folder), folder)[1]


def test_every_form_of_a_model_is_opened(compact, base, make_pruned, words, same_weights, tmp_path, capfd):
    model = make_pruned()
    model.save_pretrained(tmp_path / "plain")
    model.save_pretrained(tmp_path / "run" / "model")
    fineprune.save_delta(model, tmp_path / "delta", base)
    capfd.readouterr()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for folder in (tmp_path / "plain", compact, tmp_path / "delta", tmp_path / "run"):
        place = folder / "model" if folder.name == "run" else folder
        assert open_model(folder).tokenizer is None
        words(place)
        opened = open_model(str(folder), need_tokenizer=True)
        assert same_weights(opened.model, model)
        assert type(opened.model) is BertForSequenceClassification
        assert not opened.model.training
        assert opened.tokenizer("good film")["input_ids"] == [2, 5, 7, 3]
        assert opened.place == place
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")


def test_a_checkpoint_of_the_original_scripts_is_recognized(foreign, folder):
    query = "bert.encoder.layer.0.attention.self.query"
    scores = torch.linspace(-1, 1, 256).view(16, 16)
    foreign.masked(folder, {query: scores}, "sigmoied_threshold")
    opened = open_model(folder, threshold=0.5)
    assert torch.equal(opened.model.get_submodule(query).weight != 0, scores.sigmoid() > 0.5)
    with pytest.raises(FinepruneError, match="threshold"):
        open_model(folder)


def test_a_name_on_the_hub_is_refused_unless_it_is_asked_for(monkeypatch):
    def never(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(BertForSequenceClassification, "from_pretrained", never)
    for name in ("bert-base-uncased", "nobody/nothing", "minilm"):
        with pytest.raises(FinepruneError, match=f"{name}: no model in it; name a run or a model folder"):
            open_model(name)
    with pytest.raises(FinepruneError) as error:
        open_model("nobody/nothing", hub=True)
    assert str(error.value).startswith(
        "nobody/nothing: cannot load the model (no such folder, so from the hub): "
    )
    assert "\n" not in str(error.value)


def test_a_model_of_the_hub_takes_the_class_of_its_config_or_the_one_given(
    monkeypatch, base, make_dense, words
):
    """The hub is a folder here."""
    words(base)
    monkeypatch.setattr(loading, "find_model", lambda source: str(base))
    opened = open_model("a/model", hub=True)
    assert type(opened.model) is BertForSequenceClassification
    assert opened.tokenizer("good")["input_ids"] == [2, 5, 3]
    assert opened.place == str(base)
    given = open_model("a/model", hub=True, hub_class=BertForTokenClassification)
    assert type(given.model) is BertForTokenClassification


def test_a_tokenizer_that_is_missing_or_broken(base, words):
    with pytest.raises(FinepruneError, match="no tokenizer in it; save the model's tokenizer there, too"):
        open_model(base, need_tokenizer=True)
    for path in words(base).glob("tokenizer*"):
        path.write_text("{")
    with pytest.raises(FinepruneError, match="cannot load the tokenizer") as error:
        open_model(base)
    assert "\n" not in str(error.value)
