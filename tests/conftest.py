"""Shared fixtures: one `backend` for the whole suite, and settings that make runs repeatable."""

from importlib.util import find_spec

import pytest
from hypothesis import settings

settings.register_profile("lnsim", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("lnsim")


BACKENDS = ["numba", *(["torch"] if find_spec("torch") else [])]


@pytest.fixture(params=BACKENDS)
def backend(request):
    """The name of each backend that is there."""
    return request.param


@pytest.fixture
def small_doubles():
    """Torch with a seed, in float64, on the one thread that small cases are worth."""
    import torch

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def fallback(monkeypatch):
    """The number of parameters that went through plain autograd, call by call."""
    from lnsim_torch.ntk import kernel

    counts = []
    original = kernel._plain_gradients

    def counted(x, plan, parameters, outputs):
        counts.append(len(parameters))
        return original(x, plan, parameters, outputs)

    monkeypatch.setattr(kernel, "_plain_gradients", counted)
    return counts


@pytest.fixture
def no_fallback(fallback):
    """Fail if a parameter went through plain autograd."""
    yield
    assert not fallback


def pytest_collection_modifyitems(items):
    """Tests marked gpu run where there is a CUDA device, and are skipped elsewhere."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and "torch" in BACKENDS:
        import torch

        if torch.cuda.is_available():
            return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
