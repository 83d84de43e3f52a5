"""From token ids to what the encoder reads: the sum of a word's, a position's and a type's row, normed."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fineprune_runtime.architectures import architecture, epsilon, whole
from fineprune_runtime.dense import Dense
from fineprune_runtime.errors import EngineError
from fineprune_runtime.folder import Folder, Table
from fineprune_runtime.layers import Norm

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


class Embeddings(NamedTuple):
    """The tables and the norm behind them (Devlin et al., 2019, figure 2)."""

    words: Table
    positions: Table
    types: Table | None
    norm: Norm
    epsilon: float
    projection: Dense | None
    """ELECTRA's layer from the embeddings' size to the encoder's, where the two differ."""
    padding: int | None
    """RoBERTa's padding id: positions count from the next one, and padding has this one. Else None."""

    @property
    def limit(self) -> int:
        """The most tokens that there are positions for."""
        return len(self.positions.rows) - (0 if self.padding is None else self.padding + 1)

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        tables = (self.words, self.positions, self.types)
        parts = (*tables, *self.norm, self.projection)
        return sum(int(part.nbytes) for part in parts if part is not None)

    def __call__(self, ids: Ids, types: Ids | None = None) -> Floats:
        """What the encoder reads, (batch, length, hidden), of token ids and token types, (batch, length).

        Without `types` all are of type 0. Raises `EngineError` for ids and types that the tables lack,
        and for more tokens than there are positions.
        """
        if ids.shape[1] > self.limit:
            raise EngineError(
                f"{ids.shape[1]} tokens are too many: the model's table of positions ends at {self.limit}; "
                "cut the texts"
            )
        _inside("token id", ids, self.words)
        total = self.words(ids)
        if self.types is not None:
            types = np.zeros_like(ids) if types is None else types
            _inside("token type", types, self.types)
            total += self.types(types)
        total += self.positions(self._places(ids))
        total = layer_norm(total, self.norm, self.epsilon)
        if self.projection is None:
            return total
        return self.projection(total)

    def _places(self, ids: Ids) -> Ids:
        """The row of each token in the table of positions."""
        if self.padding is None:
            return np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        real = ids != self.padding
        places: Ids = np.cumsum(real, axis=1) * real + self.padding
        return places


def read_embeddings(folder: Folder, prefix: str) -> Embeddings:
    """The embeddings of a model whose base's weights begin with `prefix`. Raises `EngineError`."""
    config = folder.config
    known = architecture(config)
    hidden = whole(config, "hidden_size")
    width = whole(config, "embedding_size", 128) if config["model_type"] == "electra" else hidden
    place = f"{prefix}embeddings."

    def table(name: str, rows: int) -> Table:
        return folder.table(f"{place}{name}.weight", (rows, width))

    projection = None
    if width != hidden:
        weight = folder.dense(f"{prefix}embeddings_project.weight", (hidden, width))
        projection = Dense(weight, folder.dense(f"{prefix}embeddings_project.bias", (hidden,)))
    padding = None
    if known.offset:
        padding = config.get("pad_token_id", known.padding)
        if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
            raise EngineError(f"pad_token_id in config.json is {padding!r}, expected a whole number")
    made = Embeddings(
        words=table("word_embeddings", whole(config, "vocab_size")),
        positions=table("position_embeddings", whole(config, "max_position_embeddings", 512)),
        types=table("token_type_embeddings", whole(config, "type_vocab_size", 2)) if known.types else None,
        norm=Norm(*(folder.dense(f"{place}LayerNorm.{part}", (width,)) for part in ("weight", "bias"))),
        epsilon=epsilon(config),
        projection=projection,
        padding=padding,
    )
    if made.limit < 1:
        raise EngineError(
            f"config.json: with pad_token_id {padding} none of {len(made.positions.rows)} positions is left"
        )
    return made


def layer_norm(x: Floats, norm: Norm, epsilon: float) -> Floats:
    """Layer norm over the last dimension (Ba et al., 2016); float32 like `x`."""
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centered).mean(axis=-1, keepdims=True)
    result: Floats = centered / np.sqrt(variance + np.float32(epsilon)) * norm.weight + norm.bias
    return result


def _inside(what: str, ids: Ids, table: Table) -> None:
    rows = len(table.rows)
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
        wrong = next(value for value in ids.reshape(-1).tolist() if not 0 <= value < rows)
        raise EngineError(
            f"{what} {wrong}: the model's table ends at {rows - 1}; the tokenizer is of another model"
        )
