"""A process whose partners are gone says so in one line."""

import pytest

from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import agreement

GONE = "[/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:48840: Connection reset by peer"


@pytest.mark.parametrize(
    ("several", "text", "said"),
    [(True, GONE, "another process of this training.*--resume"), (False, GONE, "gloo"), (True, "a", "^a$")],
)  # fmt: skip
def test_a_process_that_is_gone(monkeypatch, several, text, said):
    monkeypatch.setattr(agreement, "several", lambda: several)
    kind = FinepruneError if several and text == GONE else RuntimeError
    with pytest.raises(kind, match=said), agreement.connected():
        raise RuntimeError(text)
