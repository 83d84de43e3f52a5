"""Kits of the hosts, made once for a file."""

import pytest
from training.host.kits import make_kits


@pytest.fixture(scope="module")
def kits(tmp_path_factory, tokenizer, bert_config):
    """A kit for each host, by name, made when it is asked for."""
    return make_kits(tmp_path_factory.mktemp("hosts"), tokenizer, bert_config)


@pytest.fixture
def kit(kits, request):
    """The kit of the host that the test names."""
    return kits(request.param)
