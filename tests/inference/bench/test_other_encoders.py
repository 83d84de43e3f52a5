"""An encoder of another runtime under a model's head."""

import torch
from torch import nn

from fineprune.checkpoint.export import write_graph
from fineprune.inference.bench.other_encoders import with_encoder


class Doubled(nn.Module):
    """An encoder whose states and pooled state are twice those of another one."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *given, **named):
        found = self.encoder(*given, **named)
        return type(found)(
            last_hidden_state=2 * found.last_hidden_state, pooler_output=2 * found.pooler_output
        )


@torch.inference_mode()
def test_the_copy_runs_the_other_encoder(make, texts):
    model, inputs = make("bert"), texts(2, 9)
    expected = model(**inputs).logits
    twice = model.classifier(2 * model.bert(**inputs).pooler_output)
    assert torch.equal(with_encoder(model, Doubled(model.bert))(**inputs).logits, twice)
    model.forward = model.forward  # as an exporter leaves it: bound to this model
    assert torch.equal(with_encoder(model, Doubled(model.bert))(**inputs).logits, twice)
    assert torch.equal(model(**inputs).logits, expected)


def test_an_encoder_alone_is_replaced(make):
    model = make("bert").bert
    other = nn.Identity()
    assert with_encoder(model, other) is other


def test_an_export_leaves_no_forward_on_the_model(make, texts, tmp_path):
    model, inputs = make("bert"), texts(2, 9)
    write_graph(model, inputs, tmp_path, "onnx", False)
    assert not any("forward" in vars(module) for module in model.modules())
