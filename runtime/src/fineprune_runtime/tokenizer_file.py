"""Open tokenizer.json as transformers does: the class in tokenizer_config.json overrides parts of the file.

transformers 5 builds the tokenizers of most of its classes anew from the vocabulary in tokenizer.json and
the settings in tokenizer_config.json (do_lower_case, strip_accents, add_prefix_space, …), so a file that
disagrees with the settings loses. The classes in `_FAMILIES` are built so here, too. For all others
tokenizer.json is taken as it is. That is what transformers does for generic and unknown classes; where it
builds one anew (HerbertTokenizer, T5Tokenizer, …), the file that it saved agrees with the settings, unless an
older version saved it or somebody has changed one of them.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors

from fineprune_runtime.errors import EngineError
from fineprune_runtime.folder import Folder
from fineprune_runtime.reading import JSON_LIMIT, check_regular

_FILE = "tokenizer.json"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class _Family(NamedTuple):
    """The classes of transformers that build their tokenizer in the same way."""

    model: str
    """The kind of model that tokenizer.json must hold."""
    defaults: Mapping[str, str]
    """The special tokens where the settings name none."""
    apply: Callable[[Tokenizer, Mapping[str, Any], Mapping[str, str]], None]
    """Set the parts of a tokenizer by the settings and the special tokens."""


@contextmanager
def tokenizer_errors(before: str) -> Iterator[None]:
    """Raise an `EngineError` that begins with `before` for each error of the tokenizers library.

    The library raises `Exception` itself, and a panic of its Rust code is a `BaseException`.
    """
    try:
        yield
    except (EngineError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise EngineError(f"{before} ({message[:300]})") from error


def class_name(folder: Folder, settings: Mapping[str, Any]) -> str:
    """Return the tokenizer class of a folder, without "Fast": the settings', config.json's or the model's.

    "" stands for the class that takes tokenizer.json as it is.
    """
    if folder.config.get("model_type") in _GENERIC:
        return ""
    named = settings.get("tokenizer_class") or folder.config.get("tokenizer_class")
    if not isinstance(named, str):
        named = _CLASSES.get(folder.config.get("model_type", ""), "")
    return named.removesuffix("Fast")


def read_settings(folder: Folder) -> dict[str, Any]:
    """Return the settings in tokenizer_config.json; {} if there is no such file."""
    settings = folder.json("tokenizer_config.json", needed=False)
    if "added_tokens_decoder" not in settings:  # an older folder: special tokens have a file of their own
        settings = settings | folder.json("special_tokens_map.json", needed=False)
    return settings


def read_tokenizer(folder: Folder, settings: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer of a folder, without truncation and padding.

    Raises:
        EngineError: tokenizer.json is missing or damaged, or the settings do not fit it.
    """
    file = folder.path / _FILE
    if not file.exists():
        raise EngineError(
            f"{folder.path}: has no {_FILE}; save the model's fast tokenizer there (save_pretrained)"
        )
    check_regular(file, JSON_LIMIT)
    with tokenizer_errors(f"{file}: cannot be read, it is damaged"):
        backend = Tokenizer.from_file(str(file))
        backend.no_padding()
        backend.no_truncation()
    name = class_name(folder, settings)
    family = _FAMILIES.get(name)
    kind = type(backend.model).__name__
    if family is not None and kind != family.model:
        raise EngineError(
            f"{folder.path}: tokenizer_class is {name}, which has a {family.model} model, but {_FILE} "
            f"holds a {kind} model; save the model's tokenizer again (save_pretrained)"
        )
    with tokenizer_errors(f"{folder.path}: tokenizer_config.json and {_FILE} do not fit each other"):
        special = _special_tokens(settings, family.defaults if family else {})
        backend = shallow_copy(backend, _added_tokens(backend, settings, special, family is None))
        if family is not None:
            family.apply(backend, settings, special)
    backend.encode_special_tokens = settings.get("split_special_tokens") is True
    return backend


def lowercase(backend: Tokenizer) -> None:
    """Let a tokenizer lowercase texts once it has found special tokens, as sentence-transformers does.

    A tokenizer that has a step for this stays as it is.
    """
    old = backend.normalizer
    # cast: the stubs do not say that a Sequence can be read
    steps = list(cast(Any, old)) if isinstance(old, normalizers.Sequence) else [] if old is None else [old]
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


def shallow_copy(backend: Tokenizer, added: Sequence[AddedToken] | None = None) -> Tokenizer:
    """Return a tokenizer that shares the vocabulary of `backend`, and has its own truncation and padding.

    Args:
        backend: the tokenizer to copy.
        added: the added tokens of the copy; None: those of `backend`.
    """
    copy = Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        if getattr(backend, part) is not None:
            setattr(copy, part, getattr(backend, part))
    if added is None:
        added = [token for _, token in sorted(backend.get_added_tokens_decoder().items())]
    copy.add_tokens(list(added))
    copy.encode_special_tokens = backend.encode_special_tokens
    return copy


def _special_tokens(settings: Mapping[str, Any], defaults: Mapping[str, str]) -> dict[str, str]:
    """Return the special tokens by name: those of the settings, else the defaults of the class."""
    special = dict(defaults)
    for name in _SPECIAL:
        value = settings.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            special[name] = value
    return special


def _added_tokens(
    backend: Tokenizer, settings: Mapping[str, Any], special: Mapping[str, str], keep: bool
) -> list[AddedToken]:
    """Return the added tokens: those of the settings (and with `keep` of the file), and special tokens."""
    in_file = [token for _, token in sorted(backend.get_added_tokens_decoder().items())]
    added = in_file
    listed = settings.get("added_tokens_decoder")
    if isinstance(listed, dict):
        by_id = {int(number): AddedToken(**token) for number, token in listed.items()}
        added = [token for _, token in sorted(by_id.items())]
        if keep:
            names = {token.content for token in in_file}
            added = in_file + [token for token in added if token.content not in names]
    known = {token.content for token in added}
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or ()
    for value in (*special.values(), *(extra.values() if isinstance(extra, dict) else extra)):
        token = AddedToken(**{**value, "special": True}) if isinstance(value, dict) else value
        token = AddedToken(token, special=True) if isinstance(token, str) else token
        if token.content not in known:
            known.add(token.content)
            added.append(token)
    return added


def _with_id(backend: Tokenizer, token: str) -> tuple[str, int]:
    """Return a special token with its id."""
    number = backend.token_to_id(token)
    if number is None:
        raise EngineError(f"{_FILE}: its vocabulary lacks the special token {token!r}")
    return token, number


def _set_bert_words(backend: Tokenizer, settings: Mapping[str, Any], special: Mapping[str, str]) -> None:
    backend.model.unk_token = special["unk_token"]
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def _as_bert(backend: Tokenizer, settings: Mapping[str, Any], special: Mapping[str, str]) -> None:
    _set_bert_words(backend, settings, special)
    _set_pairs(backend, special)


def _set_pairs(backend: Tokenizer, special: Mapping[str, str]) -> None:
    """Set the special tokens and the types of a text, and of a pair, as BERT has them."""
    cls, sep = special["cls_token"], special["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[_with_id(backend, cls), _with_id(backend, sep)],
    )


def _as_mpnet(backend: Tokenizer, settings: Mapping[str, Any], special: Mapping[str, str]) -> None:
    _set_bert_words(backend, settings, special)
    sep, cls = (_with_id(backend, special[name]) for name in ("sep_token", "cls_token"))
    backend.post_processor = processors.RobertaProcessing(sep, cls, True, False)


def _as_roberta(backend: Tokenizer, settings: Mapping[str, Any], special: Mapping[str, str]) -> None:
    prefix, trim = settings.get("add_prefix_space", False), settings.get("trim_offsets", True)
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    sep, cls = (_with_id(backend, special[name]) for name in ("sep_token", "cls_token"))
    backend.post_processor = processors.RobertaProcessing(sep, cls, trim, prefix)


def _as_xlm_roberta(backend: Tokenizer, settings: Mapping[str, Any], special: Mapping[str, str]) -> None:
    scheme = "always" if settings.get("add_prefix_space", True) else "never"
    backend.normalizer = _precompiled(backend)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme),
        ]
    )
    bos, eos = special["bos_token"], special["eos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=[bos, "$A", eos],
        pair=[bos, "$A", eos, eos, "$B", eos],
        special_tokens=[_with_id(backend, bos), _with_id(backend, eos)],
    )


def _as_deberta(backend: Tokenizer, settings: Mapping[str, Any], special: Mapping[str, str]) -> None:
    parts = [normalizers.Lowercase()] if settings.get("do_lower_case", False) else []
    backend.normalizer = normalizers.Sequence(
        [
            *parts,
            normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "),
            normalizers.NFC(),
            normalizers.Strip(left=False, right=True),
        ]
    )
    scheme = "always" if settings.get("add_prefix_space", True) else "first"
    split = [pre_tokenizers.Punctuation("isolated")] if settings.get("split_by_punct", False) else []
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*split, pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)]
    )
    _set_pairs(backend, special)


def _precompiled(backend: Tokenizer) -> Any:
    """Return the only part of the file's normalizer that XLM-RoBERTa keeps; None if it has no such part."""
    if backend.normalizer is None:
        return None
    state = json.loads(backend.normalizer.__getstate__())
    parts = state["normalizers"] if state["type"] == "Sequence" else [state]
    for index, part in enumerate(parts):
        if part["type"] == "Precompiled":
            return backend.normalizer if len(parts) == 1 else backend.normalizer[index]
    return None


_BERT = _Family(
    "WordPiece",
    {
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    },
    _as_bert,
)
_LIKE_ROBERTA = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_ROBERTA = _Family("BPE", _LIKE_ROBERTA, _as_roberta)
_FAMILIES = {
    "BartTokenizer": _ROBERTA,
    "BertTokenizer": _BERT,
    "DistilBertTokenizer": _BERT,
    "ElectraTokenizer": _BERT,
    "LEDTokenizer": _ROBERTA,
    "LayoutLMTokenizer": _BERT,
    "LongformerTokenizer": _ROBERTA,
    "LxmertTokenizer": _BERT,
    "MobileBertTokenizer": _BERT,
    "MvpTokenizer": _ROBERTA,
    "SqueezeBertTokenizer": _BERT,
    "MPNetTokenizer": _Family("WordPiece", {**_LIKE_ROBERTA, "unk_token": "[UNK]"}, _as_mpnet),
    "RobertaTokenizer": _ROBERTA,
    "XLMRobertaTokenizer": _Family("Unigram", _LIKE_ROBERTA, _as_xlm_roberta),
    "CamembertTokenizer": _Family("Unigram", _LIKE_ROBERTA, _as_xlm_roberta),
    "DebertaV2Tokenizer": _Family(
        "Unigram", {**_BERT.defaults, "bos_token": "[CLS]", "eos_token": "[SEP]"}, _as_deberta
    ),
}
_GENERIC = ("modernbert",)  # model types whose tokenizer_class transformers does not follow
# The class where neither tokenizer_config.json nor config.json names one, by model_type.
_CLASSES = {
    "bert": "BertTokenizer",
    "camembert": "CamembertTokenizer",
    "data2vec-text": "RobertaTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "ernie": "BertTokenizer",
    "mpnet": "MPNetTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}
