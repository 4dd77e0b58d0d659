"""Modules found by their name, and the one sentence for what is missing."""

import sys

import pytest

from lnsim import backend
from lnsim.base import plugins
from lnsim.images import erf_network

pytestmark = pytest.mark.small


@pytest.fixture
def half(tmp_path, monkeypatch):
    """A backend without a two-layer network, whose other networks need what nobody has."""
    (tmp_path / "lnsim_half").mkdir()
    (tmp_path / "lnsim_half" / "__init__.py").touch()
    (tmp_path / "lnsim_half" / "network_engine.py").write_text("import nowhere.at_all")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("lnsim_half")


def test_a_module_is_found_by_its_name():
    assert plugins.load("json.decoder", "nobody") is sys.modules["json.decoder"]
    assert plugins.backend("numba") is sys.modules["lnsim_numba"]


def test_one_sentence_says_what_is_missing(half):
    for call, message in (
        (lambda: backend.load_networks("half"),
         "backend 'half' is not installed: it needs nowhere: pip install nowhere"),
        (lambda: erf_network.load_engine("half"), "backend 'half' has no two-layer network: no"
         " module lnsim_half.erf_network was found"),
        (lambda: backend.load_networks("numba"),
         "backend 'numba' has no networks to train: use 'torch'"),
        (lambda: backend.load_networks("abacus"),
         "backend 'abacus' is not installed: no package lnsim_abacus was found"),
        (lambda: plugins.load("nowhere.part", "data=x", extra="torch", instead=", or give a file"),
         "data=x needs nowhere: pip install 'lnsim[torch]', or give a file"),
    ):  # fmt: skip
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value) == message


@pytest.mark.parametrize("load", [backend.load, backend.load_networks, erf_network.load_engine])
def test_the_name_of_a_backend_is_a_word(load):
    with pytest.raises(ValueError, match=r"a word such as numba or torch, got '\.\./numba'"):
        load("../numba")
