"""Embed sentences without torch: `load(DIR).encode(texts)`, as sentence-transformers does."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fineprune_runtime.cross_encoders import ABOUT
from fineprune_runtime.errors import EngineError
from fineprune_runtime.folder import Folder
from fineprune_runtime.pooling import Pooling
from fineprune_runtime.predictor import Floats, Network, Predictor
from fineprune_runtime.results import read_texts
from fineprune_runtime.tokens import Tokens


class SentencePredictor(Predictor):
    """A model that turns a text into a vector."""

    def __init__(self, network: Network, tokens: Tokens, folder: Folder) -> None:
        """Read the prompts of sentence-transformers beside the model.

        Raises:
            EngineError: they are not texts, or the default one is not among them.
        """
        super().__init__(network, tokens, (), regression=False)
        about = folder.json(ABOUT, needed=False)
        self.usual = tokens.usual
        self.prompts = _prompts(folder, about)
        self._default = about.get("default_prompt_name")
        if self._default is not None and (
            not isinstance(self._default, str) or self._default not in self.prompts
        ):
            raise EngineError(f"{folder.path}: default_prompt_name is {self._default!r}, {self._known()}")

    def encode(
        self,
        texts: Iterable[str],
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> Floats:
        """Return the vectors of texts, (texts, features) float32, in the order given.

        Args:
            texts: the texts.
            batch_size: texts in one batch; it does not change the vectors.
            max_length: tokens to which texts are cut; None: as the model's `max_seq_length` says.
            prompt: text in front of each one; None: that of `prompt_name`.
            prompt_name: of the model's `prompts`; None: the model's default, mostly none.

        Raises:
            EngineError: as `TextPredictor.predict`, and for a prompt that the model does not have.
        """
        texts, _ = read_texts(texts, None, batch_size, "encode")
        before = self._prompt(prompt, prompt_name)
        rows = [before + text for text in texts]
        if not rows:
            return np.zeros((0, self._width()), np.float32)
        length = self._tokens.length(max_length, self.usual, pairs=False)
        return np.stack(self._run(self._tokens.encode(rows, None, length), batch_size))

    def predict(
        self,
        texts: Iterable[str],
        pairs: Iterable[str] | None = None,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> list[Floats]:
        """Return the vector of each text, as `encode` does; `pairs` must be None."""
        if pairs is not None:
            raise EngineError("predict: this model embeds single texts; leave pairs out")
        return list(self.encode(texts, batch_size=batch_size, max_length=max_length))

    def _width(self) -> int:
        pooling = self.network.head
        return pooling.width(self.encoder.hidden) if isinstance(pooling, Pooling) else self.encoder.hidden

    def _prompt(self, prompt: str | None, name: str | None) -> str:
        """Return the text that is put in front of each one."""
        if not isinstance(prompt, str | None):
            raise EngineError(f"encode: prompt is {prompt!r}, expected a text")
        name = self._default if name is None else name
        if prompt is None:
            if name is not None and (not isinstance(name, str) or name not in self.prompts):
                raise EngineError(f"encode: prompt_name is {name!r}, {self._known()}")
            prompt = "" if name is None else self.prompts[name]
        pooling = self.network.head
        if prompt and isinstance(pooling, Pooling) and not pooling.with_prompt:
            raise EngineError(
                "encode: the model pools without the prompt's tokens (include_prompt is false), which is not "
                "possible here: leave the prompt out, or use sentence-transformers"
            )
        return prompt

    def _known(self) -> str:
        return f"allowed are {', '.join(map(repr, self.prompts)) or 'none: the model has no prompts'}"


def _prompts(folder: Folder, about: Mapping[str, Any]) -> dict[str, str]:
    prompts = about.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise EngineError(
            f"{folder.path}: prompts in config_sentence_transformers.json is {repr(prompts)[:80]}, expected "
            "names and texts"
        )
    return {name: text or "" for name, text in prompts.items()}  # null is no prompt to sentence-transformers
