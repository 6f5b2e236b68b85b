"""Sentences on the line, plane or volume of a result, and on its grid. Torch-free."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lltoolkit.labelled.facts import recipes_of
from lltoolkit.labelled.phrases import join, known, listed, number, percent, plural, tell_parameters
from lltoolkit.labelled.schema import axes_of

SHAPES = {1: "line", 2: "plane", 3: "volume"}
NORMALIZED = {
    "filter": ", filter-normalized (each filter is scaled to the norm of the network's own)",
    "layer": ", layer-normalized (each tensor is scaled to the norm of the network's own)",
    "weight": ", weight-normalized (each entry is multiplied by the network's own)",
    "none": ", not rescaled",
}
IGNORED = {
    "bias_bn": "Biases and batch-norm parameters (all tensors with one axis) were left unchanged",
    "none": "Biases and batch-norm parameters were moved too",
    "original_code": "Biases and batch-norm parameters (all tensors with one axis) were moved along their own values, "
    "as in the code of Li et al. (2018)",
}


def tell_subspace(result: xr.Dataset) -> str:
    """Say what the line, plane or volume is."""
    recipes = recipes_of(result)
    if not recipes:
        return ""
    recipe = recipes[0]
    dims = int(recipe.get("dims") or len(axes_of(result)) or 2)
    shape = SHAPES.get(dims, "subspace")
    tell = {"random": _random, "interpolation": _interpolation, "hessian": _hessian, "pca": _pca}.get(
        str(recipe.get("kind"))
    )
    if tell is None:
        return f"The {shape} was given by hand (kind {recipe['kind']!r})" if recipe.get("kind") else ""
    subject = f"The {shape}"
    if len(recipes) > 1:
        seeds = [each["seed"] for each in recipes if "seed" in each]
        among = f" (seeds {listed(map(str, seeds))})" if len(seeds) == len(recipes) else ""
        subject = f"Each of {len(recipes)} {shape}s{among}"
        recipe = {name: value for name, value in recipe.items() if name != "seed"}
    return tell(recipe, subject, dims, result)


def _random(recipe: Mapping[str, Any], subject: str, dims: int, result: xr.Dataset) -> str:
    words = {
        1: "a random Gaussian direction",
        2: "two random Gaussian directions",
        3: "three random Gaussian directions",
    }
    seed = f" (seed {recipe['seed']})" if "seed" in recipe else ""
    orthogonal = ", orthogonal to one another within each filter" if recipe.get("orthogonalize") and dims > 1 else ""
    scaled = NORMALIZED.get(str(recipe.get("normalize")), "")
    sentence = f"{subject} passes through the given weights along {words.get(dims, 'random directions')}{seed}{scaled}"
    cosine = known(result.attrs, "direction_cosine") if dims == 2 and len(recipes_of(result)) == 1 else None
    angle = f"The cosine between the directions is {number(cosine)}" if cosine is not None else ""
    return join([sentence + orthogonal, IGNORED.get(str(recipe.get("ignore")), ""), angle])


def _interpolation(recipe: Mapping[str, Any], subject: str, dims: int, result: xr.Dataset) -> str:
    if dims == 1:
        return f"{subject} runs straight through two sets of weights, at alpha = 0 and at alpha = 1"
    return (
        f"{subject} runs through three sets of weights, at (alpha, beta) = (0, 0), (1, 0) and (0, 1); its axes are not "
        "made orthogonal, nor of one length"
    )


def _hessian(recipe: Mapping[str, Any], subject: str, dims: int, result: xr.Dataset) -> str:
    split = f"{recipe['split']} " if recipe.get("split") else ""
    top = ("", "the largest eigenvalue", "the two largest eigenvalues", "the three largest eigenvalues")
    low = "the largest, the smallest and the second largest eigenvalue"
    both = (*top[:2], "the largest and the smallest eigenvalue", low)
    which = (both if recipe.get("ends") == "both" else top)[dims]
    values = recipe.get("eigenvalues")
    told = f" ({listed(map(number, values))})" if values else ""
    chosen = tell_parameters(recipe.get("parameters"))
    lengths = {
        "curvature": "An axis has the length at which the quadratic model of the loss has changed by 1, at most "
        "that of the weights",
        "theta": "An axis is as long as the weights",
        "unit": "An axis has length 1",
    }
    bad = "The eigenvectors did not converge to that tolerance" if recipe.get("converged") == 0 else ""
    tol = f", to residuals of {number(recipe['tol'])} of the largest" if recipe.get("tol") else ""
    vectors = "the eigenvector" if dims == 1 else "eigenvectors"
    sentence = (
        f"{subject} passes through the given weights along {vectors} of the Hessian of the {split}loss{chosen}, "
        f"{'that' if dims == 1 else 'those'} of {which}{told}{tol}"
    )
    return join([sentence, bad, lengths.get(str(recipe.get("scale")), "")])


def _pca(recipe: Mapping[str, Any], subject: str, dims: int, result: xr.Dataset) -> str:
    words = {1: "first principal component", 2: "first two principal components", 3: "first three principal components"}
    runs = int(recipe.get("n_runs") or 1)
    among = ""
    if recipe.get("n_checkpoints"):
        among = f" of {plural(int(recipe['n_checkpoints']), 'checkpoint')}"
        among += f" of {runs} trainings" if runs > 1 else ""
        steps = recipe.get("steps")
        among += f" (optimizer steps {number(steps[0])} to {number(steps[1])})" if steps else ""
    points = {"final": "the final weights", "start": "the first checkpoint", "mean": "the mean of the checkpoints"}
    origin = points.get(str(recipe.get("origin")), "its origin")
    about = {"origin": f", taken about {origin} and not about their mean", "mean": ", taken about their mean"}
    about = {} if recipe.get("origin") == "mean" else about
    sentence = (
        f"{subject} passes through {origin} along the {words.get(dims, 'principal components')}{among}"
        f"{about.get(str(recipe.get('center')), '')}{tell_parameters(recipe.get('parameters'))}"
    )
    shares = recipe.get("explained_variance")
    return join([sentence, tell_shares(shares, recipe.get("explained_variance_null")) if shares else ""])


def tell_shares(shares: Sequence[float], null: Sequence[float] | None, subject: str = "") -> str:
    """Say how much of the variance components explain, and what a random walk's would."""
    subject, verb = (subject or "They", "explain") if len(shares) > 1 else (subject or "It", "explains")
    sentence = f"{subject} {verb} {listed(map(percent, shares))} of the checkpoints' variance"
    if null and all(math.isfinite(share) for share in null):
        sentence += f"; of a random walk with as many steps it would be {listed(map(percent, null))}"
    return sentence


def tell_grid(result: xr.Dataset, subject: str = "It was evaluated") -> str:
    """Say on which grid."""
    axes = axes_of(result)
    if not axes:
        return ""
    sizes = " x ".join(str(result.sizes[axis]) for axis in axes)
    ranges = [f"{axis} from {number(result[axis].values[0])} to {number(result[axis].values[-1])}" for axis in axes]
    steps = [np.diff(result[axis].values) for axis in axes]
    even = all(np.allclose(step, step[0], rtol=1e-6) for step in steps if len(step))
    spaced = "" if even else ", not evenly spaced"
    points = "points" if len(axes) == 1 else "grid points"
    subject = "Each was evaluated" if len(recipes_of(result)) > 1 else subject
    return f"{subject} at {sizes} {points}, {listed(ranges)}{spaced}"
