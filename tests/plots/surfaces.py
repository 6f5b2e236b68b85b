"""Synthetic surfaces with everything that real ones have."""

import numpy as np
import xarray as xr

from lltoolkit.plots.field import pick_plane


def make_surface(n=31, m=31, *, rugged=0.0, alpha=None, beta=None, seed=0):
    """A log-bowl with two minima beside the origin, about 1e-2 to 1e4; `rugged` adds bumps in log space."""
    alpha = np.linspace(-1, 1, n) if alpha is None else np.asarray(alpha, dtype=float)
    beta = np.linspace(-1, 1, m) if beta is None else np.asarray(beta, dtype=float)
    a, b = np.meshgrid(alpha, beta, indexing="ij")
    height = -2 + 4.2 * (a**2 + 0.8 * b**2 + 0.4 * a * b) ** 0.8
    height -= 1.3 * np.exp(-((a - 0.6) ** 2 + (b + 0.5) ** 2) / 0.03) + 0.9 * np.exp(
        -((a + 0.5) ** 2 + (b - 0.6) ** 2) / 0.05
    )
    if rugged:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            x, y, w = rng.uniform(-1, 1, 3)
            height += rugged * w * np.exp(-((a - x) ** 2 + (b - y) ** 2) / 0.012)
    loss = 10.0**height
    accuracy = np.clip(1 / (1 + 0.5 * loss**0.7), 0.1, 1)
    grid = {"alpha": alpha, "beta": beta}
    return xr.Dataset(
        {
            "loss": (
                ("split", "alpha", "beta"),
                np.stack([loss, 1.3 * loss + 0.02]),
                {"long_name": "loss", "units": "nat"},
            ),
            "accuracy": (
                ("split", "alpha", "beta"),
                np.stack([accuracy, 0.97 * accuracy]),
                {"long_name": "accuracy", "units": "1"},
            ),
            "loss_se": (("split", "alpha", "beta"), np.stack([0.1 * loss, 0.1 * loss]), {"units": "nat"}),
            "status": (("alpha", "beta"), np.ones(loss.shape, dtype=np.int8)),
        },
        coords={"split": ["train", "test"], **grid},
        attrs={
            "kind": "surface",
            "model": "resnet20",
            "n_examples": 300,
            "normalize": "filter",
            "ignore": "bias_bn",
            "buffers": "frozen",
        },
    )


def field_of(values):
    grid = {"alpha": np.linspace(-1, 1, values.shape[0]), "beta": np.linspace(-1, 1, values.shape[1])}
    return pick_plane(xr.Dataset({"loss": (("alpha", "beta"), values)}, coords=grid), "loss", None)
