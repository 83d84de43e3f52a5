"""Put the encoder of another runtime under a model's head."""

import copy
from typing import Any

from torch import nn


def with_encoder(model: Any, encoder: nn.Module) -> nn.Module:
    """Return a copy of a model with this encoder, which shares the head's weights.

    A model that is an encoder alone becomes `encoder`.
    """
    if model.base_model is model:
        return encoder
    changed: nn.Module = copy.copy(model)
    changed._modules = dict(model._modules) | {model.base_model_prefix: encoder}
    # One that was set on the model is bound to it, and would run its encoder.
    vars(changed).pop("forward", None)
    return changed
