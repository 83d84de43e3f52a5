"""Tiny models of each architecture and task, with tokenizers of a few words, and questions to ask them."""

import json
import zlib
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import BPE

from fineprune import save_compact
from fineprune.pruning.targets import find_targets

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 40}

# Each of the first two layers is of one kind. Texts are longer than what the second one sees at once.
MODERN = {**SMALL, "local_attention": 9, "global_attn_every_n_layers": 2}

# As version 3; texts are longer than what has a bucket for each distance.
DEBERTA = {
    **SMALL,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "position_buckets": 6,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
}

# Of each architecture: how its classes begin, their tokenizer's class, settings of the config.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("Bert", "BertTokenizer", SMALL),
    "roberta": ("Roberta", "RobertaTokenizer", {**SMALL, "type_vocab_size": 1}),
    "xlm-roberta": ("XLMRoberta", "XLMRobertaTokenizer", {**SMALL, "type_vocab_size": 1}),
    "electra": ("Electra", "ElectraTokenizer", {**SMALL, "embedding_size": 8}),
    "distilbert": ("DistilBert", "DistilBertTokenizer", DISTIL),
    "mpnet": ("MPNet", "MPNetTokenizer", SMALL),
    "modernbert": ("ModernBert", "PreTrainedTokenizerFast", MODERN),
    "ernie": ("Ernie", "BertTokenizer", SMALL),
    "camembert": ("Camembert", "CamembertTokenizer", {**SMALL, "type_vocab_size": 1}),
    "data2vec-text": ("Data2VecText", "RobertaTokenizer", {**SMALL, "type_vocab_size": 1}),
    "deberta-v2": ("DebertaV2", "DebertaV2Tokenizer", DEBERTA),
}
TASKS = {
    "text": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "questions": "ForQuestionAnswering",
}
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
WORDS = ["a", "b", "c", "good", "bad", "film", "very", "London", "Anna", "the", "?"]

TEXTS = [
    "a good film",
    "bad",
    "",
    "very very good film the Anna London " * 9,
    "Anna  went to\tLondon, a good-bad film ?",
    "<s> [SEP] <pad> film é€😀 \u200b x",
]
PAIRS = ["bad film", "a " * 60, "the", "", "London", "very good"]
QUESTIONS = ["good Anna ?", "very " * 30 + "?", "the film ?", "x ?"]
CONTEXTS = [
    "the good film very bad Anna London " * 12,
    "a very good film",
    "  the\nbad film é€😀 Anna went to London ",
    "\u200b",
]


def make_tokenizer(kind: str) -> Any:
    """The tokenizer of an architecture: of words and letters, of bytes, or of pieces."""
    cls = getattr(transformers, KINDS[kind][1])
    if kind in ("roberta", "data2vec-text"):
        every = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
        merges = [("Ġ", "f"), ("Ġ", "g"), ("o", "o")]
        every += ["".join(pair) for pair in merges]
        return cls(vocab={token: index for index, token in enumerate(every)}, merges=merges)
    if kind in ("xlm-roberta", "camembert", "deberta-v2"):
        pieces = ["▁", *(f"▁{word}" for word in WORDS), *"abcdefgimorvyLA?,-"]
        special = ("<s>", "<pad>", "</s>", "<unk>")
        if kind == "deberta-v2":
            special = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
        vocab = [(token, 0.0) for token in special]
        vocab += [(piece, -float(1 + index)) for index, piece in enumerate(pieces)]
        return cls(vocab=[*vocab, ("[MASK]" if kind == "deberta-v2" else "<mask>", 0.0)])
    if kind == "modernbert":
        return _tokenizer_as_it_is()
    letters = "abcdefghilmnortvwxy?,-"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if kind == "mpnet":
        special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    every = [*special, *dict.fromkeys(word.lower() for word in WORDS)]
    every += [letter for letter in letters if letter not in every] + [f"##{letter}" for letter in letters]
    return cls(vocab={token: index for index, token in enumerate(every)})


def _tokenizer_as_it_is() -> Any:
    """A tokenizer of bytes whose class sets none of its parts, as ModernBERT's."""
    every = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [("Ġ", "f"), ("Ġ", "g"), ("o", "o")]
    every += ["".join(pair) for pair in merges]
    backend = Tokenizer(BPE({token: index for index, token in enumerate(every)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    names = ("unk", "cls", "sep", "pad", "mask")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{name}_token": f"[{name.upper()}]" for name in names},
    )


@torch.no_grad()
def make_model(kind: str, task: str, classes: int = 3, pruned: bool = True, **settings: Any) -> Any:
    """A model in evaluation mode, its weights spread wide; of its encoder's matrices a tenth is left."""
    start, _, sizes = KINDS[kind]
    cls = getattr(transformers, start + TASKS[task])
    tokenizer = make_tokenizer(kind)
    named = TAGS if task == "tokens" else [f"class {index}" for index in range(classes)]
    given = sizes | {"vocab_size": len(tokenizer), "initializer_range": 0.3} | settings
    if task != "questions":
        given["id2label"] = dict(enumerate(named))
    torch.manual_seed(7)
    model = cls(cls.config_class(pad_token_id=tokenizer.pad_token_id, **given)).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # norms and biases begin as ones and zeros, which would hide mistakes
            parameter.normal_(1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0, 0.3)
    if pruned:
        for module in find_targets(model).values():
            size = module.weight.abs()
            module.weight[size < size.flatten().quantile(0.9)] = 0
    return model


def save(folder: Path, kind: str, task: str, values: str = "float32", embeddings: str = "keep", **made: Any):
    """Save a compact model with its tokenizer; returns both as torch loads them again."""
    tokenizer = make_tokenizer(kind)
    save_compact(make_model(kind, task, **made), folder, tokenizer, values, embeddings)  # type: ignore[arg-type]
    return load_torch(folder, kind, task)


def renew(folder: Path) -> Path:
    """Give a compact folder the checksums of the files beside its weights, after a test has changed one."""
    for file in folder.glob("*.safetensors"):
        content = file.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        about = header.get("__metadata__", {})
        manifest = json.loads(about.get("fineprune", "{}"))
        if "files" in manifest:
            manifest["files"] = {name: zlib.crc32((folder / name).read_bytes()) for name in manifest["files"]}
            about["fineprune"] = json.dumps(manifest)
        text = json.dumps(header).encode()
        beside = file.with_suffix(".new")  # models may have the old file mapped
        beside.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
        beside.replace(file)
    return folder


def load_torch(folder: Path, kind: str, task: str) -> tuple[Any, Any]:
    """The torch model of a folder, in evaluation mode, and its tokenizer."""
    model = getattr(transformers, KINDS[kind][0] + TASKS[task]).from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def torch_logits(model: Any, tokenizer: Any, text: str, pair: str | None = None, length: int = 38) -> Any:
    """What torch says of one text, as an array: (classes,), or (tokens, classes)."""
    pairs = None if pair is None else [pair]  # a list, since transformers takes one empty text for none
    output = model(**tokenizer([text], pairs, truncation=True, max_length=length, return_tensors="pt"))
    if "start_logits" in output:
        return torch.stack([output.start_logits[0], output.end_logits[0]], dim=-1).numpy()
    return output.logits[0].numpy()
