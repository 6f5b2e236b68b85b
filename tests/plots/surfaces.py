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


def make_weights(n_epochs=30, drops=(15, 22), *, seed=0, n=60):
    """A run in `n` dimensions, shape ``(n_epochs + 1, n)``: a curved descent, with noise that falls with the rate."""
    rng = np.random.default_rng(seed)
    target, theta = np.zeros(n), rng.normal(size=n) * np.geomspace(1.0, 0.15, n)
    velocity, path = 0.12 * rng.normal(size=n), [theta.copy()]
    pull = np.geomspace(0.25, 0.04, n)
    for epoch in range(n_epochs):
        rate = 0.1 ** sum(epoch >= drop for drop in drops)
        velocity = 0.6 * velocity + rate**0.5 * (pull * (target - theta) + 0.10 * rate**0.5 * rng.normal(size=n))
        theta = theta + velocity
        path.append(theta.copy())
    return np.array(path)


def make_path(n_epochs=30, drops=(15, 22), *, seed=0, extent=0.8, weights=None):
    """A trajectory in the plane of its own PCA about its end, scaled to `extent`, with losses of both kinds."""
    weights = make_weights(n_epochs, drops, seed=seed) if weights is None else weights
    moved = weights - weights[-1]
    _, singular, rows = np.linalg.svd(moved, full_matrices=False)
    inside = moved @ rows[:2].T
    length = np.linalg.norm(moved, axis=1)
    outside = np.sqrt(np.maximum(length**2 - (inside**2).sum(axis=1), 0))
    residual = np.divide(outside, length, out=np.zeros_like(length), where=length > 1e-12)
    coordinates = extent * inside / np.abs(inside).max()
    plane = 10 ** (-2 + 4.2 * (coordinates[:, 0] ** 2 + 0.8 * coordinates[:, 1] ** 2) ** 0.8)
    true = plane * (1 - 0.85 * residual) * np.linspace(1, 0.9, len(plane))
    share = singular**2 / (singular**2).sum()
    rate = np.array([0.1 * 0.1 ** sum(max(epoch - 1, 0) >= drop for drop in drops) for epoch in range(len(plane))])
    both = lambda values: (("split", "step"), np.stack([values, 1.4 * values + 0.03]), {"units": "nat"})  # noqa: E731
    correct = lambda values: (("split", "step"), np.stack([1, 0.97] / (1 + 0.5 * values[:, None])).T)  # noqa: E731
    return xr.Dataset(
        {
            "alpha": ("step", coordinates[:, 0]),
            "beta": ("step", coordinates[:, 1]),
            "residual": ("step", residual, {"units": "1"}),
            "distance": ("step", length),
            "loss": both(true),
            "plane_loss": both(plane),
            "accuracy": correct(true),
            "plane_accuracy": correct(plane),
            "explained_variance": ("axis", share[:2]),
            "explained_variance_null": ("axis", [0.63, 0.15]),
            "status": ("step", np.ones(len(plane), dtype=np.int8)),
        },
        coords={
            "step": 22 * np.arange(len(plane)),
            "epoch": ("step", np.arange(len(plane)), {"long_name": "epoch"}),
            "learning_rate": ("step", rate),
            "axis": ["alpha", "beta"],
            "split": ["train", "test"],
        },
        attrs={"kind": "trajectory", "model": "resnet20", "subspace_kind": "pca", "run": "sgd"},
    )


def make_statistics(n_epochs=30, drops=(15, 22), *, seed=0):
    """Statistics of the same run, by plain differences of its weights; as trajectory_statistics gives."""
    weights = make_weights(n_epochs, drops, seed=seed)
    path = make_path(n_epochs, drops, seed=seed, weights=weights)
    steps = np.diff(weights, axis=0)
    norm = lambda rows: np.linalg.norm(rows, axis=1)  # noqa: E731
    cosine = lambda a, b: (a * b).sum(axis=1) / np.maximum(norm(a) * norm(b), 1e-300)  # noqa: E731
    whole = np.broadcast_to(weights[-1] - weights[0], steps.shape)
    first = [np.nan]
    return xr.Dataset(
        {
            "distance_from_start": ("step", norm(weights - weights[0])),
            "distance_to_end": ("step", norm(weights - weights[-1])),
            "step_length": ("step", np.concatenate([first, norm(steps)])),
            "path_length": ("step", np.concatenate([[0.0], norm(steps).cumsum()])),
            "cosine_to_previous": ("step", np.concatenate([first, first, cosine(steps[1:], steps[:-1])])),
            "cosine_to_displacement": ("step", np.concatenate([first, cosine(steps, whole)])),
            "cosine_to_end": ("step", np.concatenate([first, cosine(steps, weights[-1] - weights[:-1])])),
            "theta_norm": ("step", norm(weights + 1)),
        },
        coords={name: path[name] for name in ("step", "epoch", "learning_rate")},
        attrs={"kind": "statistics", "model": "resnet20", "run": "sgd"},
    )
