"""Find the transformer inside a model of sentence-transformers, which runs it on texts."""

from torch import nn


def transformer_of(model: nn.Module) -> nn.Module:
    """Return the transformers model inside a SentenceTransformer or CrossEncoder, else the model itself."""
    inner = getattr(model, "transformers_model", None)
    return inner if isinstance(inner, nn.Module) else model
