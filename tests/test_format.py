"""Files that older versions wrote go on opening, and mean what they meant."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import lltoolkit as ll

ROOT = Path(__file__).parent.parent
FIRST = ROOT / "tests" / "data" / "schema1.surface.nc"


def problem():
    """Everything in closed form but the two directions, which come from their seed."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    x = torch.linspace(-2, 2, 30).view(10, 3).sin()
    objective = ll.Objective(model, (x, torch.arange(10) % 2), n_examples=6, device="cpu")
    return objective, ll.random_subspace(objective, seed=0)


def make(path):
    """Write the file anew: only for a new schema version."""
    return ll.compute_surface(*problem(), resolution=5, path=path, progress=False)


def test_a_file_of_the_first_schema_holds_what_is_computed_today(tmp_path):
    stored = ll.open_result(FIRST)
    xr.testing.assert_allclose(stored, make(tmp_path / "now.surface.nc"), rtol=1e-6, atol=1e-9)
    assert (stored["status"] == 1).all()


def test_a_file_of_the_first_schema_is_resumed(tmp_path):
    path = tmp_path / "old.surface.nc"
    path.write_bytes(FIRST.read_bytes())
    finer = ll.compute_surface(*problem(), resolution=9, path=path, progress=False)
    assert np.array_equal(finer["loss"][:, ::2, ::2], ll.open_result(FIRST)["loss"])


SHIPPED = [
    path for path in sorted((ROOT / "data").rglob("*.nc")) if not path.name.endswith(".weights.nc")
]  # histograms


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_results_are_whole(path):
    result = ll.open_result(path)
    if "status" in result.variables:
        assert (result["status"] > 0).all()
        if (result["status"] > 1).any():  # filled in, to a tolerance that an audit confirmed
            assert result.attrs["tolerance_met"] == 1
    assert "dirty" not in result.attrs["git_commit"]
