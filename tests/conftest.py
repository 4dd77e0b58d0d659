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


def pytest_collection_modifyitems(items):
    """Tests marked gpu run where there is a CUDA device, and are skipped elsewhere."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and "torch" in BACKENDS:
        import torch

        if torch.cuda.is_available():
            return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
