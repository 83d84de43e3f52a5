"""Tokenize texts with the tokenizer.json of a model folder and the settings of its tokenizer_config.json."""

from collections.abc import Sequence
from functools import lru_cache
from numbers import Integral
from typing import Any

from tokenizers import Encoding, Tokenizer

from fineprune_runtime.errors import EngineError
from fineprune_runtime.folder import Folder
from fineprune_runtime.sentence_settings import UNSET, SentenceSettings
from fineprune_runtime.tokenizer_file import (
    class_name,
    lowercase,
    read_settings,
    read_tokenizer,
    shallow_copy,
    tokenizer_errors,
)

# The tokenizer classes of transformers that give token types to a model by default.
_TYPED = (
    "BertTokenizer",
    "DebertaV2Tokenizer",
    "ElectraTokenizer",
    "LayoutLMTokenizer",
    "LxmertTokenizer",
    "MobileBertTokenizer",
    "SqueezeBertTokenizer",
)


class Tokens:
    """The tokenizer of a model folder. Several threads may use it at the same time.

    Args:
        folder: the folder, which must hold a tokenizer.json.
        positions: the largest number of tokens that the model has positions for.
        sentences: what sentence-transformers sets beside tokenizer_config.json; its length takes the place of
            `model_max_length` there.

    Raises:
        EngineError: tokenizer.json is missing or damaged.
    """

    def __init__(self, folder: Folder, positions: int, sentences: SentenceSettings = UNSET) -> None:
        config = read_settings(folder)
        self._file = folder.path / "tokenizer.json"
        self._backend = read_tokenizer(folder, config)
        if sentences.lower:
            lowercase(self._backend)
        self._side = "left" if config.get("truncation_side") == "left" else "right"
        most = config.get("model_max_length")  # a float without limit: 1e30
        self.limit = positions
        if sentences.length is None and isinstance(most, int | float) and most >= 1:
            self.limit = int(min(positions, most))
        self.usual: int = min(self.limit, sentences.length or positions)
        """The number of tokens to which sentence-transformers cuts a row, or a pair."""
        self.context_first: bool = config.get("padding_side") == "left"
        """Whether the context precedes the question, as for models that are padded on the left."""
        names = config.get("model_input_names")
        self.typed = (
            "token_type_ids" in names if isinstance(names, list) else (class_name(folder, config) in _TYPED)
        )
        """Whether the model gets the token types of the tokenizer; otherwise all are 0."""
        self._cutting = lru_cache(maxsize=16)(self._cut)
        self.anchors: list[int] = self._anchors(config)
        """The ids of the tokens that begin a text; a later id takes precedence."""

    def special(self, pairs: bool) -> int:
        """Return the number of special tokens added to a text, or to a pair of texts."""
        return int(self._backend.num_special_tokens_to_add(pairs))

    def length(self, asked: int | None, usual: int, pairs: bool) -> int:
        """Return the maximum number of tokens in a row: `asked`, or by default `usual` within `limit`.

        Raises:
            EngineError: the model has fewer positions than `asked`, or no token of a text would fit.
        """
        least = self.special(pairs) + 1
        if asked is None:
            asked = max(least, min(usual, self.limit))
        given: Any = asked  # of a caller without types
        if (
            isinstance(given, bool)
            or not isinstance(given, Integral)
            or not least <= int(given) <= self.limit
        ):
            raise EngineError(
                f"max_length is {asked!r}; this model takes {least} to {self.limit} tokens, special ones too"
            )
        return int(asked)

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        max_length: int,
        strategy: str = "longest_first",
        stride: int = 0,
    ) -> list[Encoding]:
        """Return the tokens of each text, or pair of texts, cut to `max_length`.

        The `overflowing` of each encoding has the rest of its text, in pieces that overlap by `stride`
        tokens. `strategy` says which text of a pair is cut: "longest_first", "only_first" or "only_second".
        """
        return self._encoded(self._cutting(max_length, strategy, stride), texts, pairs)

    def offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Return the characters [start, end) of each token of the uncut texts, without special tokens."""
        return [encoding.offsets for encoding in self._encoded(self._backend, texts, None, special=False)]

    def _cut(self, max_length: int, strategy: str, stride: int) -> Tokenizer:
        """Return a copy of the tokenizer that truncates, which no one changes afterwards.

        Truncation is a state of the tokenizer, and other threads may be using it.
        """
        backend = shallow_copy(self._backend)
        backend.enable_truncation(max_length, stride=stride, strategy=strategy, direction=self._side)
        return backend

    def _encoded(
        self, backend: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, special: bool = True
    ) -> list[Encoding]:
        rows: list[Any] = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        with tokenizer_errors(f"{self._file}: cannot tokenize the texts, it is damaged"):
            return list(backend.encode_batch(rows, add_special_tokens=special))

    def _anchors(self, config: dict[str, Any]) -> list[int]:
        ids = []
        for name in ("bos_token", "cls_token"):
            token = config.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            number = self._backend.token_to_id(token) if isinstance(token, str) else None
            if number is not None:
                ids.append(number)
        return ids
