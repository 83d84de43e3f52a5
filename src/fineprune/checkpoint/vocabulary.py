"""Drop the rows of the embedding table that a corpus never uses."""

import copy
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from fineprune._messages import one_line
from fineprune.checkpoint.model_files import explained
from fineprune.errors import FinepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")
_BATCH = 1_000
_Text = str | tuple[str, str]


def shrink_vocabulary(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", texts: Iterable[_Text]
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Drop the vocabulary that `texts` never use; the model's outputs for them stay the same.

    Also kept: special and added tokens, tokens that the model's config names, and single characters, so that
    other texts can be spelled.

    Args:
        model: Changed in place (an optimizer created before still holds the old table).
        tokenizer: The model's; not changed.
        texts: Strings or pairs of strings, read once and held in memory.

    Returns:
        The model, and a new tokenizer with the kept tokens renumbered in their old order.

    Raises:
        FinepruneError: with the model unchanged, when the model has an output vocabulary or no table of token
            embeddings; when the tokenizer is not a fast one with a BPE, Unigram, WordLevel or WordPiece
            model, or not the model's; when there are no texts or one is neither a string nor a pair; and
            when the new tokenizer would not encode a text to the same tokens.

    Source: Abdaoui, Pradel and Sigel, "Load What You Need: Smaller Versions of Multilingual BERT",
    2020, arXiv:2010.05609, for dropping rows; the rules for what else to keep are our own.
    """
    corpus = _read(texts)
    table, tables = _find_tables(model)
    _check_tokenizer(tokenizer, len(table))
    holders = _holders(model)
    before = _encode(tokenizer, corpus)
    kept = set(np.unique(np.concatenate(before)).tolist())
    kept.update(index for index in tokenizer.all_special_ids if index is not None)
    kept.update(_ids_of_model(model, holders, tables))
    smaller, places = _rebuild(tokenizer, kept, len(table))
    order = np.array(list(places))
    for text, old, new in zip(corpus, before, _encode(smaller, corpus), strict=True):
        if not np.array_equal(old, order[new]):
            raise FinepruneError(
                f"{_short(text)} would get other tokens, so no weights were changed; leave this text out"
            )

    # From here on nothing can fail.
    _take_rows(table, tables, order)
    _renumber(holders, places, len(table))
    return model, smaller


def _ids_of_model(
    model: "PreTrainedModel", holders: Iterable[Any], tables: list[nn.Embedding]
) -> Iterator[int]:
    """Yield the token ids that the model itself refers to."""
    for holder in holders:
        for ids in _named_ids(holder).values():
            yield from ids
    for module in model.modules():
        # RoBERTa and its kin count positions from the padding id (1): it must not move, so all ids below
        # stay.
        if isinstance(module, nn.Embedding) and module not in tables and module.padding_idx is not None:
            yield from range(module.padding_idx + 1)


def _take_rows(table: nn.Parameter, tables: Iterable[nn.Embedding], order: np.ndarray) -> None:
    """Give the modules that share `table` one with its rows `order` alone."""
    rows = torch.from_numpy(order).to(table.device)
    weight = nn.Parameter(table.detach().index_select(0, rows), requires_grad=table.requires_grad)
    for module in tables:
        module.weight, module.num_embeddings = weight, len(order)


def _renumber(holders: Iterable[Any], places: dict[int, int], size: int) -> None:
    """Move the token ids that modules and configs hold, by `places`; the vocabulary had `size` tokens."""
    for holder in holders:
        for name, ids in _named_ids(holder).items():
            # An id beyond the table, such as GPT2Config's default of 50256, named no token and still does.
            moved = [places.get(index, index) for index in ids]
            setattr(holder, name, moved if isinstance(getattr(holder, name), list) else moved[0])
        if not isinstance(holder, nn.Module) and getattr(holder, "vocab_size", None) == size:
            holder.vocab_size = len(places)


def _read(texts: Iterable[_Text]) -> list[_Text]:
    corpus = [] if isinstance(texts, str) else list(texts)
    if not corpus:
        raise FinepruneError(f"texts is {_short(texts)}; give a list of strings or pairs of strings")
    for index, text in enumerate(corpus):
        parts = text if isinstance(text, tuple) and len(text) == 2 else (text,)
        try:
            for part in parts:
                part.encode()  # tokenizers refuse half a surrogate pair
        except (AttributeError, UnicodeEncodeError) as error:
            raise FinepruneError(
                f"texts[{index}] is {_short(text)}; give strings or tuples of two strings, in valid Unicode"
            ) from error
    return corpus


def _find_tables(model: "PreTrainedModel") -> tuple[nn.Parameter, list[nn.Embedding]]:
    """Return the table of token embeddings, and the modules that share it (T5 and BART have several)."""
    name = type(model).__name__
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:
        embedding = None
    if not isinstance(embedding, nn.Embedding) or not isinstance(embedding.weight, nn.Parameter):
        raise FinepruneError(f"{name} has no plain table of token embeddings; give a text encoder")
    table = embedding.weight
    users = [user for user in model.modules() if any(p is table for p in user.parameters(recurse=False))]
    tables = [user for user in users if isinstance(user, nn.Embedding)]
    if model.get_output_embeddings() is not None or len(tables) < len(users):
        raise FinepruneError(
            f"{name} predicts tokens, so all of its vocabulary counts; "
            "give a classifier, a tagger, a question answering model or a bare encoder"
        )
    return table, tables


def _check_tokenizer(tokenizer: "PreTrainedTokenizerBase", rows: int) -> None:
    """Raise unless `tokenizer` can be shrunk and fits a table of `rows` rows."""
    name = type(tokenizer).__name__
    if not hasattr(tokenizer, "is_fast"):
        raise FinepruneError(f"tokenizer={name}: give the model's tokenizer, of transformers")
    kind = type(tokenizer.backend_tokenizer.model).__name__ if tokenizer.is_fast else "slow"
    if kind not in _MODELS:
        raise FinepruneError(
            f"{name} is a {kind} tokenizer; only fast ones with a model of {', '.join(_MODELS)} can be shrunk"
        )
    if (highest := max(tokenizer.get_vocab().values())) >= rows:
        raise FinepruneError(
            f"{name} has ids up to {highest}, but the model has {rows} rows; give the model's own tokenizer"
        )


def _holders(model: "PreTrainedModel") -> list[Any]:
    """Return all objects of the model that may name token ids: its modules and their configs, each once."""
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs += [config.get_text_config() for config in configs if hasattr(config, "get_text_config")]
    every = [*model.modules(), *configs, getattr(model, "generation_config", None)]
    return list({id(holder): holder for holder in every if hasattr(holder, "__dict__")}.values())


def _named_ids(holder: Any) -> dict[str, list[int]]:
    """Return the attributes of a module or config that are token ids, each as a list."""
    return {
        name: value if isinstance(value, list) else [value]
        for name, value in vars(holder).items()
        if (name == "padding_idx" or name.endswith("_token_id")) and isinstance(value, int | list)
    }


def _encode(tokenizer: "PreTrainedTokenizerBase", corpus: list[_Text]) -> list[np.ndarray]:
    """Return the ids of each text, not truncated, with special tokens."""
    try:
        tokenizer = copy.deepcopy(tokenizer)  # a call changes a tokenizer's settings for the next one
    except Exception as error:  # a plain Exception, when a part of it is written in Python
        raise FinepruneError(f"{type(tokenizer).__name__} cannot be copied: {one_line(error)}") from error
    encoded = []
    for start in range(0, len(corpus), _BATCH):
        texts = corpus[start : start + _BATCH]
        with explained(f"{type(tokenizer).__name__} cannot tokenize the texts"):
            batch = tokenizer(texts, truncation=False, padding=False, verbose=False)
        encoded += [np.array(ids, dtype=np.int64) for ids in batch["input_ids"]]
    return encoded


def _id_cells(spec: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the places of tokenizer.json that hold ids outside its vocabulary: a container and its key."""
    yield from ((added, "id") for added in spec["added_tokens"])
    cells = ((spec["padding"], "pad_id"), (spec["model"], "unk_id"))  # Unigram's; others name the token
    yield from ((holder, key) for holder, key in cells if holder and holder.get(key) is not None)
    processors = [spec["post_processor"] or {}]
    while processors:
        processor = processors.pop()
        processors += processor.get("processors", [])  # a Sequence
        for special in (processor.get("special_tokens") or {}).values():  # TemplateProcessing
            yield from ((special["ids"], index) for index in range(len(special["ids"])))
        yield from ((processor[name], 1) for name in ("sep", "cls") if name in processor)  # Bert-, Roberta-


def _complete(model: dict[str, Any], kept: set[int]) -> set[int]:
    """Return `kept` and the ids that `model` needs to split the same words the same way, and to spell others.

    A word's pieces stay, and removing others changes nothing: WordPiece takes the longest piece that fits (a
    word that it could not spell may become spellable: the caller compares), and Unigram the path of the
    highest score, which is still the highest. BPE reaches its pieces by merges: see below.
    """
    unigram = model["type"] == "Unigram"
    ids = {entry[0]: index for index, entry in enumerate(model["vocab"])} if unigram else model["vocab"]
    prefix = "▁" if unigram else model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""
    tokens = {t for t in ids if len(t) == 1 or len(t.removeprefix(prefix).removesuffix(suffix)) == 1}
    tokens.add(model.get("unk_token"))
    if model.get("byte_fallback"):
        tokens.update(f"<0x{byte:02X}>" for byte in range(256))
    if unigram:
        # An unknown character costs 10 more than the worst piece, so that piece stays as well.
        tokens.add(min(model["vocab"], key=lambda entry: entry[1])[0])
    kept = kept | {ids[token] for token in tokens if token in ids}
    if model["type"] == "BPE":
        # BPE applies the merge of the lowest rank until none applies. Each applied merge makes a part of one
        # of the word's tokens; so with the parts of the kept tokens and all merges that make them, the same
        # merge is available at each step and still the lowest. At the end none applies, as fewer merges are
        # known.
        parts: dict[str, list[str]] = defaultdict(list)
        for left, right in model["merges"]:
            parts[left + right[len(prefix) :]] += [left, right]
        todo = [token for token, index in ids.items() if index in kept]
        while todo:
            new = {part for part in parts[todo.pop()] if ids[part] not in kept}
            kept.update(ids[part] for part in new)
            todo += new
    return kept


def _rebuild(
    tokenizer: "PreTrainedTokenizerBase", kept: set[int], rows: int
) -> "tuple[PreTrainedTokenizerBase, dict[int, int]]":
    """Return a tokenizer of the `kept` ids and those that it needs; and its ids by the old ones, in order."""
    name = type(tokenizer).__name__
    try:
        with TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            file = Path(folder, "tokenizer.json")
            spec = json.loads(file.read_text(encoding="utf-8"))
            named = {holder[key] for holder, key in _id_cells(spec)}
            order = sorted(_complete(spec["model"], kept | named) & set(range(rows)))
            places = {index: place for place, index in enumerate(order)}
            _rewrite(spec, places)
            file.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
            smaller = type(tokenizer).from_pretrained(folder)
    except Exception as error:  # anything that the tokenizer's own class raises
        raise FinepruneError(f"{name} cannot be saved, shrunk and loaded again: {one_line(error)}") from error
    smaller.name_or_path = tokenizer.name_or_path  # not the temporary folder
    expected = {token: places[index] for token, index in tokenizer.get_vocab().items() if index in places}
    vocabulary = smaller.get_vocab()
    if not expected.items() <= vocabulary.items() or max(vocabulary.values()) >= len(places):
        raise FinepruneError(f"{name} loads with other ids than its tokenizer.json has; it cannot be shrunk")
    return smaller, places


def _rewrite(spec: dict[str, Any], places: dict[int, int]) -> None:
    """Reduce tokenizer.json, in place, to the ids in `places`, and renumber them."""
    for holder, key in list(_id_cells(spec)):
        holder[key] = places.get(holder[key], holder[key])
    model = spec["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in places]
        return
    ids = sorted(model["vocab"].items(), key=lambda item: item[1])
    model["vocab"] = {token: places[index] for token, index in ids if index in places}
    if model["type"] == "BPE":
        skip = len(model.get("continuing_subword_prefix") or "")
        model["merges"] = [pair for pair in model["merges"] if pair[0] + pair[1][skip:] in model["vocab"]]


def _short(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:79]}…"
