"""Shared fixtures: one `backend` for the whole suite, and settings that make runs repeatable."""

import pytest
from hypothesis import settings

settings.register_profile("lnsim", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("lnsim")


@pytest.fixture(params=["numba"])
def backend(request):
    """The name of each backend that is there."""
    return request.param
