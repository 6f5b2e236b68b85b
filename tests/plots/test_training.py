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


def test_labels_and_legends_lie_beside_the_curves_and_not_on_them(table):
    four = xr.concat([table, table.assign_coords(measure=["sam", "asam"])], "measure", data_vars="minimal")
    names = ["largest Hessian eigenvalue", "trace of the Hessian", "worst case in a ball, logits normalized", "average"]
    four = four.assign_coords(
        measure_long_name=("measure", [name + " under noise proportional to each weight" for name in names]),
        train_loss=("step", np.linspace(0.06, 0.02, 5), {"long_name": "train loss", "units": "nat"}),
    )
    for fig in (plot_sharpness(four), plot_sharpness(four, measures="lambda_max")):
        fig.draw_without_rendering()
        box = fig.bbox
        for ax in fig.axes:
            for label in filter(lambda label: label.get_text(), (ax.xaxis.label, ax.yaxis.label)):
                inside = label.get_window_extent()
                assert inside.y0 >= 0
                assert inside.y1 <= box.height
            if ax.get_yscale() == "log":
                low, high = ax.get_ylim()
                labels = [tick.get_text() for tick in ax.get_yticklabels() if low <= tick.get_position()[1] <= high]
                labels += [tick.get_text() for tick in ax.get_yticklabels(minor=True)]
                assert 2 <= len([text for text in labels if text]) <= 4
            elif legend := ax.get_legend():
                assert legend.get_window_extent().y0 >= ax.get_window_extent().y1 - 1
    assert sum(ax.get_legend() is not None for ax in plot_sharpness(four).axes) == 1


def test_bad_input(table):
    with pytest.raises(ValueError, match="Did you mean 'trace'"):
        plot_sharpness(table, measures=["trac"])
    with pytest.raises(ValueError, match="one measure"):
        plot_sharpness(table, ax=Figure().subplots())
