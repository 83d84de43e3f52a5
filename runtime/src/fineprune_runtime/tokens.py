"""Tokenize texts with the tokenizer.json of a model folder and the settings of its tokenizer_config.json."""

from collections.abc import Sequence
from typing import Any

from tokenizers import Encoding, Tokenizer

from fineprune_runtime.errors import EngineError
from fineprune_runtime.folder import Folder

_FILE = "tokenizer.json"
# The tokenizer classes of transformers that give token types to a model by default, and the model types that
# get token types where tokenizer_config.json names no class.
_TYPED = ("BertTokenizer", "ElectraTokenizer")
_TYPED_MODELS = ("bert", "electra")


class Tokens:
    """The tokenizer of a model folder.

    Args:
        folder: the folder, which must hold a tokenizer.json.
        positions: the largest number of tokens that the model has positions for.

    Raises:
        EngineError: tokenizer.json is missing or damaged.
    """

    def __init__(self, folder: Folder, positions: int) -> None:
        file = folder.path / _FILE
        if not file.is_file():
            raise EngineError(
                f"{folder.path}: has no {_FILE}; save the model's fast tokenizer there (save_pretrained)"
            )
        try:
            self._backend = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises Exception itself
            raise EngineError(f"{file}: cannot be read, it is damaged ({error})") from error
        config = folder.json("tokenizer_config.json", needed=False)
        self._backend.no_padding()
        self._backend.encode_special_tokens = config.get("split_special_tokens") is True
        self._side = "left" if config.get("truncation_side") == "left" else "right"
        most = config.get("model_max_length")  # a float without limit: 1e30
        self.limit = int(min(positions, most)) if isinstance(most, int | float) and most >= 1 else positions
        self.context_first: bool = config.get("padding_side") == "left"
        """Whether the context precedes the question, as for models that are padded on the left."""
        names = config.get("model_input_names")
        cls = config.get("tokenizer_class")
        typed = folder.config.get("model_type") in _TYPED_MODELS
        if isinstance(names, list):
            typed = "token_type_ids" in names
        elif isinstance(cls, str):
            typed = cls.removesuffix("Fast") in _TYPED
        self.typed = typed
        """Whether the model gets the token types of the tokenizer; otherwise all are 0."""
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
        if isinstance(asked, bool) or not isinstance(asked, int) or not least <= asked <= self.limit:
            raise EngineError(
                f"max_length is {asked!r}; this model takes {least} to {self.limit} tokens, special ones too"
            )
        return asked

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
        self._backend.enable_truncation(max_length, stride=stride, strategy=strategy, direction=self._side)
        return self._encoded(texts, pairs, True)

    def offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Return the characters [start, end) of each token of the uncut texts, without special tokens."""
        self._backend.no_truncation()
        return [encoding.offsets for encoding in self._encoded(texts, None, False)]

    def _encoded(self, texts: Sequence[str], pairs: Sequence[str] | None, special: bool) -> list[Encoding]:
        rows: list[Any] = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        try:
            return list(self._backend.encode_batch(rows, add_special_tokens=special))
        except (TypeError, UnicodeError) as error:  # of half a surrogate pair, which a str may hold
            for value in (*texts, *(pairs or ())):
                try:
                    value.encode()
                except UnicodeEncodeError as inner:
                    place = f"{value[:40]!r} holds a lone surrogate at {inner.start}"
                    raise EngineError(f"predict: {place}, which is not text; repair its encoding") from error
            raise

    def _anchors(self, config: dict[str, Any]) -> list[int]:
        ids = []
        for name in ("bos_token", "cls_token"):
            token = config.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            number = self._backend.token_to_id(token) if isinstance(token, str) else None
            if number is not None:
                ids.append(number)
        return ids
