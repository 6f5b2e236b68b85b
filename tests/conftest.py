"""What all tests share: hypothesis kept short (500 examples by HYPOTHESIS_PROFILE=weekly), one thread."""

import os

import pytest
import torch
from hypothesis import settings

from tests.models import CASES

settings.register_profile("pull_request", max_examples=15, deadline=None)
settings.register_profile("weekly", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "pull_request"))

torch.set_num_threads(1)  # tiny networks: threads would only wait for each other


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    """Every case of tests/models.py in turn."""
    return request.param
