"""Give a padding token to tokenizers and models without one."""

from typing import TYPE_CHECKING

from fineprune.errors import FinepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def ensure_padding(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Give both a padding token: the tokenizer's own, else its end-of-text token (in place).

    Raises:
        FinepruneError: the tokenizer has neither.
    """
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise FinepruneError(
                f"{tokenizer.name_or_path}: the tokenizer has no padding token and no end token to pad with; "
                "set tokenizer.pad_token"
            )
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
