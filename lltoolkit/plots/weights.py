"""Histograms of the weights of several models, after Li et al. (2018). Needs no torch."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lltoolkit.errors import require_whole
from lltoolkit.plots.scale import number
from lltoolkit.plots.series import color_of, dashes_of
from lltoolkit.plots.style import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INSIDE = 0.999  # share of the weights that the default range shows, of the model with the widest


def plot_weights(
    models: Mapping[str, Any],
    *,
    bins: int = 100,
    range: tuple[float, float] | None = None,
    log: bool = False,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw how the weights of models are distributed.

    Biases and parameters of batch norm are left out: all tensors with two or more axes are weights.

    Parameters
    ----------
    models : mapping of str to nn.Module, Objective or mapping
        Name to a model, an `Objective` (its minimizer), or weights by name as tensors or arrays.
    bins : int
        Bars, at least 1, the same for all models.
    range : (float, float), optional
        Of the weights shown; default symmetric around 0, with 99.9 % of the weights of the model that has the widest.
    log : bool
        Whether the density has a log axis, which shows the tails.
    ax : Axes, optional
        Where to draw; by default in a new pyplot figure.

    Returns
    -------
    Axes
        Densities of all weights of each model, those outside of the range counted in; their largest share is told
        below the axis. The legend tells the standard deviation (s.d.) and the Euclidean norm of the weights.

    Raises
    ------
    TypeError
        If `models` is no mapping, or one of them is no model.
    ValueError
        If there is none, one has no weights, or `bins` or `range` is impossible.

    References
    ----------
    Li et al. (2018), Visualizing the Loss Landscape of Neural Nets: with weight decay small batches end in
    smaller weights than large ones, which alone makes their 1-D plots look sharp.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> weights = {"fc.weight": np.array([[3.0, -4.0]]), "fc.bias": np.array([9.0])}
    >>> ax = plot_weights({"mine": weights}, ax=Figure().subplots())
    >>> ax.get_legend().get_texts()[0].get_text()
    'mine (s.d. 3.5, norm 5)'
    """
    bins = require_whole("bins", bins, least=1)
    if not isinstance(models, Mapping):
        raise TypeError(f"models is a {type(models).__name__}; give {{'name': model}}, with one model or more.")
    if not models:
        raise ValueError("models is empty; give {'name': model}, with one model or more.")
    weights = {name: _weights(name, model) for name, model in models.items()}
    finite = {name: values[np.isfinite(values)] for name, values in weights.items()}
    edges = np.linspace(*_limits(finite, range), bins + 1)
    ax = new_axes() if ax is None else ax
    outside = 0.0
    for place, (name, values) in enumerate(finite.items()):
        counts, _ = np.histogram(values, edges)
        outside = max(outside, (values.size - counts.sum()) / max(values.size, 1))
        density = counts / (max(values.size, 1) * np.diff(edges))
        spread, norm = (float(values.std()), float(np.linalg.norm(values))) if values.size else (0.0, 0.0)
        text = f"{name} (s.d. {number(spread)}, norm {number(norm)})"
        if broken := weights[name].size - values.size:
            text += f", {broken} NaN or inf"
        style = {"edgecolor": color_of(place), "linestyle": dashes_of(place), "linewidth": 1.3}
        ax.stairs(density, edges, baseline=None if log else 0, label=text, **style)
    if log:
        ax.set_yscale("log", nonpositive="clip")
    else:
        ax.set_ylim(bottom=0)
    ax.margins(x=0)
    told = f"\n(up to {100 * outside:.2g} % of a model's weights are outside)" if outside > 0 else ""
    ax.set_xlabel(f"weight{told}", linespacing=1.0)
    ax.set_ylabel("density")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize="small", borderaxespad=0.2)
    return ax


def _weights(name: str, model: Any) -> np.ndarray:
    """Gather all entries of tensors with two or more axes, shape ``(n,)``, float64."""
    found = [values.ravel() for values in map(_as_array, _tensors(name, model)) if values.ndim >= 2]
    if not found or not sum(map(len, found)):
        raise ValueError(f"models[{name!r}] has no tensor with two or more axes, so no weights to draw.")
    return np.concatenate(found)


def _tensors(name: str, model: Any) -> Iterator[Any]:
    """Go over the parameters, whoever holds them; known by what they have, so that torch need not be there."""
    if callable(getattr(model, "named_parameters", None)):
        return (tensor for _, tensor in model.named_parameters())
    held = getattr(model, "theta", model)
    if not isinstance(held, Mapping):
        raise TypeError(
            f"models[{name!r}] is a {type(model).__name__}; give an nn.Module, an Objective, or a mapping of names to "
            "arrays. Weights of one model go one level deeper: {'name': model.state_dict()}."
        )
    return iter(held.values())


def _as_array(tensor: Any) -> np.ndarray:
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu().double().numpy()  # NumPy has no bfloat16
    return np.asarray(tensor, dtype=np.float64)


def _limits(weights: Mapping[str, np.ndarray], limits: tuple[float, float] | None) -> tuple[float, float]:
    if limits is not None:
        low, high = map(float, limits)
        if not (np.isfinite([low, high]).all() and low < high):
            raise ValueError(f"range={limits!r}: give two finite numbers, the smaller one first.")
        return low, high
    widest = max((float(np.quantile(np.abs(values), _INSIDE)) for values in weights.values() if values.size), default=0)
    return (-widest, widest) if widest > 0 else (-1.0, 1.0)
