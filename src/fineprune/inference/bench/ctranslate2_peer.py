"""Run a model's encoder in CTranslate2, with its head in torch: an optional peer of `fineprune bench`.

The weights go into CTranslate2's specification as its own converter puts them there. The converter itself
opens a folder with a tokenizer, which the measurement does not have.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fineprune.errors import FinepruneError
from fineprune.inference.bench.other_encoders import with_encoder
from fineprune.pruning.layout import layout_of

LOADERS = {
    "bert": "BertLoader",
    "camembert": "CamembertLoader",
    "distilbert": "DistilBertLoader",
    "roberta": "RobertaLoader",
    "xlm-roberta": "XLMRobertaLoader",
}
"""The classes of CTranslate2's converter by `model_type`."""


def encoder_in_ctranslate2(model: Any, compute_type: str, threads: int, folder: Path) -> nn.Module:
    """Return a copy of a model whose encoder runs in CTranslate2; it shares the head's weights.

    Args:
        model: The model, in float32 on the CPU.
        compute_type: "float32" or "int8", to which weights are quantized when they are loaded.
        threads: Threads of CTranslate2.
        folder: Where the converted weights are written.

    Raises:
        FinepruneError: CTranslate2 has no such encoder, or heads were removed from it.
    """
    base = model.base_model
    check(model)
    import ctranslate2

    if not (folder / "model.bin").is_file():
        specification = _specification(base)
        folder.mkdir(parents=True, exist_ok=True)
        specification.save(str(folder))
    encoder = ctranslate2.Encoder(str(folder), device="cpu", intra_threads=threads, compute_type=compute_type)
    return with_encoder(model, _Encoded(encoder, ctranslate2.StorageView.from_array))


def check(model: Any) -> None:
    """Raise `FinepruneError` for a model that CTranslate2 does not run, or would run wrongly."""
    kind = model.config.model_type
    if kind not in LOADERS:
        raise FinepruneError(f"{kind}: no encoder of CTranslate2, which has {', '.join(LOADERS)}")
    heads = model.config.num_attention_heads
    if any(half.sizes.heads != heads for block in layout_of(model) for half in block.attentions):
        raise FinepruneError(f"heads were removed, and CTranslate2 takes {heads} in every layer")


def _specification(base: Any) -> Any:
    """Return CTranslate2's specification of an encoder, with its weights."""
    from ctranslate2.converters import transformers as converters

    config = copy.deepcopy(base.config)
    config.position_embedding_type = "absolute"  # the only one that these classes of transformers have left
    parts = dict(base._modules)
    if config.model_type == "bert" and parts.get("pooler") is None:  # the loader wants one; nothing reads it
        parts["pooler"] = SimpleNamespace(dense=nn.Linear(config.hidden_size, config.hidden_size))
    loader = getattr(converters, LOADERS[config.model_type])()
    given = SimpleNamespace(config=config, **parts)
    if config.model_type == "xlm-roberta":
        given = SimpleNamespace(config=config, roberta=given)
    specification = loader.get_model_spec(given)
    specification.config.layer_norm_epsilon = getattr(config, "layer_norm_eps", 1e-12)
    loader.set_vocabulary(specification, [f"token {index}" for index in range(config.vocab_size)])
    specification.validate()
    specification.optimize()
    return specification


class _Encoded(nn.Module):
    """An encoder that hands token ids to CTranslate2 and returns its states as transformers' encoders do."""

    def __init__(self, encoder: Any, stored: Callable[[Any], Any]) -> None:
        super().__init__()
        self._encoder, self._stored = encoder, stored

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **_: Any,
    ) -> Any:
        """Return the last hidden states, and the pooled one where there is a pooler.

        Raises:
            FinepruneError: The padding does not follow the tokens, so that lengths cannot say where it is.
        """
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        ids = input_ids.numpy().astype(np.int32)
        mask = np.ones_like(ids) if attention_mask is None else attention_mask.numpy().astype(np.int32)
        if (np.diff(mask, axis=1) > 0).any():
            raise FinepruneError("CTranslate2 takes padding on the right alone (padding_side='right')")
        lengths = mask.sum(1).astype(np.int32)
        types = None if token_type_ids is None else token_type_ids.tolist()
        found = self._encoder.forward_batch(self._stored(ids), self._stored(lengths), types)
        pooled = found.pooler_output
        return BaseModelOutputWithPooling(
            last_hidden_state=torch.from_numpy(np.array(found.last_hidden_state)),
            pooler_output=None if pooled is None else torch.from_numpy(np.array(pooled)),
        )
