"""Turn token ids into the input of the encoder: the normed sum of word, position and type embeddings."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fineprune_runtime.architectures import architecture, epsilon, has_bias, whole
from fineprune_runtime.dense import Dense
from fineprune_runtime.errors import EngineError
from fineprune_runtime.folder import Folder, Table
from fineprune_runtime.layers import Norm, layer_norm

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

_FIRST = np.zeros(1, np.int64)


class Embeddings(NamedTuple):
    """The embedding tables and the norm of their sum (Devlin et al., 2019, figure 2)."""

    words: Table
    positions: Table | int
    """ModernBERT has no table, only a largest number of positions."""
    types: Table | None
    norm: Norm
    epsilon: float
    projection: Dense | None
    """ELECTRA's layer from the embedding size to the encoder's size; None where the two are equal."""
    padding: int | None
    """RoBERTa's padding id: padding has the position of that number, tokens the next ones; else None."""
    norm_last: bool = False
    """Whether the norm is of what `projection` gives, as in DeBERTa."""

    @property
    def limit(self) -> int:
        """The largest number of tokens that there are positions for."""
        size = self.positions if isinstance(self.positions, int) else self.positions.size
        return size - (0 if self.padding is None else self.padding + 1)

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        positions = None if isinstance(self.positions, int) else self.positions
        parts = (self.words, positions, self.types, *self.norm, self.projection)
        return sum(int(part.nbytes) for part in parts if part is not None)

    def __call__(self, ids: Ids, types: Ids | None = None) -> Floats:
        """Return the input of the encoder, (batch, length, hidden).

        Args:
            ids: token ids, (batch, length).
            types: token types, (batch, length); None: all are 0.

        Raises:
            EngineError: the tables lack an id or a type, or there are more tokens than positions.
        """
        if ids.shape[1] > self.limit:
            raise EngineError(
                f"{ids.shape[1]} tokens are too many: the model's positions end at {self.limit}; "
                "cut the texts"
            )
        _inside("token id", ids, self.words)
        total = self.words(ids)
        if self.types is not None:
            if types is None:
                total += self.types(_FIRST)
            else:
                _inside("token type", types, self.types)
                total += self.types(types)
        if not isinstance(self.positions, int):
            total += self.positions(self._position_rows(ids))
        if self.projection is None:
            return layer_norm(total, self.norm, self.epsilon)
        if self.norm_last:
            return layer_norm(self.projection(total), self.norm, self.epsilon)
        return self.projection(layer_norm(total, self.norm, self.epsilon))

    def _position_rows(self, ids: Ids) -> Ids:
        """Return the row of each token in the position table, for all texts at once where they agree."""
        if self.padding is None:
            return np.arange(ids.shape[1])
        real = ids != self.padding
        rows: Ids = np.cumsum(real, axis=1) * real + self.padding
        return rows


def read_embeddings(folder: Folder, prefix: str) -> Embeddings:
    """Return the embeddings of a model; the names of the weights of its base begin with `prefix`.

    Raises:
        EngineError: a weight is missing or has the wrong shape, or config.json has an invalid value.
    """
    config = folder.config
    known, kind = architecture(config), config["model_type"]
    if config.get("use_task_id"):
        raise EngineError(
            f"use_task_id in config.json is {config['use_task_id']!r}; embeddings of tasks are not possible "
            "here: run this model with torch, or accelerate its encoder"
        )
    hidden = whole(config, "hidden_size")
    usual = 128 if kind == "electra" else hidden
    width = whole(config, "embedding_size", usual) if kind in ("electra", "deberta-v2") else hidden

    def table(name: str, rows: int) -> Table:
        return folder.table(f"{prefix}{name}.weight", (rows, width))

    projection = None
    is_deberta = kind == "deberta-v2"
    if width != hidden:
        name = f"{prefix}{'embeddings.embed_proj' if is_deberta else 'embeddings_project'}"
        weight = folder.dense(f"{name}.weight", (hidden, width))
        bias = np.zeros(hidden, np.float32) if is_deberta else folder.dense(f"{name}.bias", (hidden,))
        projection = Dense(weight, bias)
    padding = None
    if known.offset:
        # MPNet's embeddings have a fixed id, whatever the config says.
        is_fixed = kind == "mpnet"
        padding = known.padding if is_fixed else config.get("pad_token_id", known.padding)
        if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
            raise EngineError(f"pad_token_id in config.json is {padding!r}, expected a whole number")
    positions = whole(config, "max_position_embeddings", 512)
    has_table, has_types = known.positions, known.types
    if is_deberta:
        has_table = config.get("position_biased_input", True) is True
        has_types = config.get("type_vocab_size", 0) != 0
    types = whole(config, "type_vocab_size", 2) if has_types else None
    embeddings = Embeddings(
        words=table(known.words, whole(config, "vocab_size")),
        positions=table("embeddings.position_embeddings", positions) if has_table else positions,
        types=None if types is None else table("embeddings.token_type_embeddings", types),
        norm=read_norm(folder, f"{prefix}{known.embedding_norm}", hidden if is_deberta else width),
        epsilon=epsilon(config),
        projection=projection,
        padding=padding,
        norm_last=is_deberta,
    )
    if embeddings.limit < 1:
        raise EngineError(f"config.json: with pad_token_id {padding} none of {positions} positions remains")
    return embeddings


def read_norm(folder: Folder, name: str, width: int) -> Norm:
    """Return the norm of a name, with zeros for a bias that the architecture does not have."""
    weight = folder.dense(f"{name}.weight", (width,))
    if has_bias(folder.config, "norm"):
        return Norm(weight, folder.dense(f"{name}.bias", (width,)))
    return Norm(weight, np.zeros(width, np.float32))


def _inside(what: str, ids: Ids, table: Table) -> None:
    rows = table.size
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
        wrong = next(value for value in ids.reshape(-1).tolist() if not 0 <= value < rows)
        raise EngineError(
            f"{what} {wrong}: the model's table ends at {rows - 1}; the tokenizer is of another model"
        )
