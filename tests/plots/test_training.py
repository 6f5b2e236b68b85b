"""Sharpness over the steps of a training, as data."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from lltoolkit.plots import plot_sharpness


@pytest.fixture
def table():
    steps = np.arange(0, 500, 100)
    values = np.stack([np.linspace(1, 4.2, 5), np.linspace(30, 50, 5)], axis=1)
    return xr.Dataset(
        {"value": (("step", "measure"), values), "value_se": (("step", "measure"), 0.1 * values)},
        coords={
            "step": steps,
            "measure": ["lambda_max", "trace"],
            "measure_units": ("measure", ["nat", "nat"]),
            "train_loss": ("step", np.geomspace(2, 0.01, 5)),
            "stability_threshold": ("step", np.full(5, 4.0)),
        },
        attrs={"stability": "gradient descent: 2/lr = 4 at lr=0.5; full batches", "stability_hessian": "euclidean"},
    )


def test_the_threshold_stands_beside_lambda_max_alone(table):
    fig = plot_sharpness(table)
    first, second = (ax for ax in fig.axes if ax.get_ylabel() in ("lambda_max [nat]", "trace [nat]"))
    sharp, threshold = first.get_lines()
    assert sharp.get_ydata() == pytest.approx(table["value"].sel(measure="lambda_max").values)
    assert threshold.get_ydata() == pytest.approx(4.0)
    assert threshold.get_label() == "gradient descent: 2/lr = 4"
    assert len(second.get_lines()) == 1
    assert [ax.get_yscale() for ax in fig.axes].count("log") == 2  # the train loss, on an axis of its own


def test_a_threshold_of_the_preconditioned_hessian_is_left_out(table):
    table.attrs["stability_hessian"] = "preconditioned"
    ax = plot_sharpness(table, measures="lambda_max", ax=Figure().subplots())
    assert len(ax.get_lines()) == 1


def test_bad_input(table):
    with pytest.raises(ValueError, match="Did you mean 'trace'"):
        plot_sharpness(table, measures=["trac"])
    with pytest.raises(ValueError, match="one measure"):
        plot_sharpness(table, ax=Figure().subplots())
