"""Spectral densities against dense eigenvalues."""

import numpy as np
import pytest
import torch
import xarray as xr

import lltoolkit as ll
from lltoolkit.errors import ResumeMismatch
from lltoolkit.labelled.spectrum import add_density
from lltoolkit.spectrum import hessian_spectrum
from tests.models import BY_NAME, seeded

X = seeded(lambda: torch.randn(50, 12).double() * torch.linspace(0.2, 3, 12).double(), 0)
EIGENVALUES = torch.linalg.eigvalsh(2 * X.T @ X / 50).numpy()


def least_squares() -> ll.Objective:
    """Give a problem whose Hessian is 2 X^T X / n."""
    model = seeded(lambda: torch.nn.Linear(12, 1, bias=False).double(), 1)
    return ll.Objective(model, (X, torch.zeros(50, 1).double()), loss="mse", dtype="float64")


def test_quadrature_has_all_eigenvalues_when_it_runs_to_the_end():
    spectrum = hessian_spectrum(least_squares(), n_probes=3, n_steps=99, progress=False)
    assert spectrum.sizes["node"] == 12
    for probe in range(3):
        assert spectrum.ritz_value.values[probe] == pytest.approx(EIGENVALUES, rel=1e-8)
        assert spectrum.ritz_weight.values[probe].sum() == pytest.approx(1)
    assert spectrum.attrs["eig_max"] == pytest.approx(EIGENVALUES[-1])
    assert spectrum.attrs["eig_min"] == pytest.approx(EIGENVALUES[0])


def test_the_mean_over_probes_comes_to_the_density_and_trace_of_all_eigenvalues():
    spectrum = hessian_spectrum(least_squares(), n_probes=300, n_steps=12, bandwidth=1.0, progress=False)
    curve = spectrum.eigenvalue.values
    exact = np.exp(-((curve[:, None] - EIGENVALUES) ** 2) / 2).mean(axis=1) / np.sqrt(2 * np.pi)
    half = spectrum.density_high.values - spectrum.density.values
    assert (np.abs(spectrum.density.values - exact) <= 2 * half + 1e-6).all()  # the interval is 2 standard errors
    assert half.max() < 0.02 < exact.max()
    assert np.trapezoid(spectrum.density.values, curve) == pytest.approx(1, abs=1e-3)
    assert abs(spectrum.attrs["trace"] - EIGENVALUES.sum()) < 4 * spectrum.attrs["trace_se"]


def test_it_goes_on_with_more_probes_and_comes_to_the_same(tmp_path):
    objective, path = least_squares(), tmp_path / "ls.spectrum.nc"
    whole = hessian_spectrum(objective, n_probes=4, n_steps=8, progress=False)
    hessian_spectrum(objective, n_probes=2, n_steps=8, path=path, progress=False)
    more = hessian_spectrum(objective, n_probes=4, n_steps=8, path=path, progress=False)
    xr.testing.assert_equal(more, whole)
    xr.testing.assert_equal(ll.open_result(path), whole)
    again = add_density(ll.open_result(path), bandwidth=2.0)
    assert again.attrs["bandwidth"] == 2.0
    with pytest.raises(ResumeMismatch, match="config_sha256"):
        hessian_spectrum(objective, n_probes=4, n_steps=8, seed=1, path=path, progress=False)


def test_one_probe_has_no_interval_and_a_loss_that_is_nan_no_spectrum():
    spectrum = hessian_spectrum(least_squares(), n_probes=1, n_steps=4, progress=False)
    assert spectrum.density_low.isnull().all()
    case = BY_NAME["mlp"]
    model = case.model()
    torch.nn.init.constant_(model[0].weight, float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        hessian_spectrum(ll.Objective(model, case.data()), progress=False)


def test_two_functions_of_one_name_are_two_spectra(tmp_path):
    case, path = BY_NAME["mlp"], tmp_path / "a.spectrum.nc"
    objective = ll.Objective(case.model(), case.data())
    first = hessian_spectrum(objective, parameters=lambda n, _: n[0] == "0", n_steps=4, path=path, progress=False)
    assert first.attrs["n_weights"] == 48
    with pytest.raises(ResumeMismatch, match="config_sha256"):
        hessian_spectrum(objective, parameters=lambda n, _: n[0] == "2", n_steps=4, path=path, progress=False)
    other = ll.Objective(case.model(), case.data(), loss=lambda output, _: output.square().mean(1), metrics=[])
    again = ll.Objective(case.model(), case.data(), loss=lambda output, _: 9 * output.square().mean(1), metrics=[])
    path = tmp_path / "b.spectrum.nc"
    hessian_spectrum(other, n_probes=1, n_steps=4, path=path, progress=False)
    with pytest.raises(ResumeMismatch, match="at the minimizer"):
        hessian_spectrum(again, n_probes=2, n_steps=4, path=path, progress=False)


def test_fewer_probes_lose_none(tmp_path):
    objective, path = least_squares(), tmp_path / "a.spectrum.nc"
    hessian_spectrum(objective, n_probes=4, n_steps=8, path=path, progress=False)
    assert hessian_spectrum(objective, n_probes=2, n_steps=8, path=path, progress=False).sizes["probe"] == 2
    assert ll.open_result(path).sizes["probe"] == 4


@pytest.mark.parametrize("bandwidth", [0, -1, float("nan"), True, "x"])
def test_a_bandwidth_that_is_none_is_refused_at_once(bandwidth):
    with pytest.raises(ValueError, match="bandwidth"):
        hessian_spectrum(least_squares(), bandwidth=bandwidth, progress=False)


def test_the_filter_metric_is_another_spectrum():
    case = BY_NAME["mlp"]
    objective = ll.Objective(case.model(), case.data())
    plain, scaled = (
        hessian_spectrum(objective, parameters="weights", metric=metric, n_steps=20, progress=False)
        for metric in ("euclidean", "filter")
    )
    assert plain.attrs["n_weights"] == scaled.attrs["n_weights"] == 64
    assert plain.attrs["eig_max"] != pytest.approx(scaled.attrs["eig_max"], rel=0.1)
