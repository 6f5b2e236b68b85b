"""Sharpness against generalization: rank correlations over a set of models, with what is needed to doubt them."""

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import xarray as xr

from lltoolkit.errors import require_whole
from lltoolkit.labelled.bootstrap import (
    cluster_counts,
    example_means,
    interval,
    partial_tau,
    redrawn_tau,
    resampled_rho,
    resampled_tau,
)
from lltoolkit.labelled.modelset import choose, labels_of, numbers_of, signs_of
from lltoolkit.labelled.streams import stream

log = logging.getLogger(__name__)

LEVEL = 0.95
# Of four models, even a perfect order comes by chance with probability 2 / 4! = 0.083, of five with 2 / 5! = 0.017.
ENOUGH_CLUSTERS = 5
_LEAST_IN_GROUP = 3  # tau of two models is 1 or -1 whatever they are
_LONG_NAMES = {
    "tau": "Kendall's tau-b",
    "rho": "Spearman's rho",
    "tau_test": "Kendall's tau-b when test examples are drawn anew",
    "tau_partial": "Kendall's partial tau",
    "tau_group_mean": "mean of tau-b within groups",
    "tau_group_min": "smallest tau-b within a group",
    "tau_group_min_at": "the group with the smallest tau-b",
    "n_groups": "groups with a tau-b",
    "n_models": "models with both values",
    "n_clusters": "clusters of these models",
    "n_dropped": "models without one of the values",
    "n_censored": "models whose value is only a bound",
    "verdict": "sign of tau-b that its interval leaves open",
}


def rank_correlation(
    table: xr.Dataset,
    *,
    against: str | Sequence[str] = "error_gap",
    measures: str | Sequence[str] | None = None,
    cluster: str | Sequence[str] | None = None,
    given: str | None = "train_loss",
    group: str | Sequence[str] | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """Correlate the ranks of sharpness measures with generalization over a set of models.

    A positive number says: the sharper, the worse. It says nothing about why; all models of a set may differ in one
    thing that moves both. So the partial tau and tau within groups stand beside it.

    Where a value is only a bound (``censored``), a pair of models counts as tied if the bound leaves its order open:
    two bounds, or a bound beyond which the other value lies.

    Parameters
    ----------
    table : xr.Dataset
        From `compute_sharpness`: ``value`` (model, measure) and on `model` the coordinates named by `against`. With
        ``test_example_loss`` and ``test_example_error`` (model, example), the test examples are resampled too. Where
        a coordinate ``measure_sharper`` (measure) says ``"lower"``, the measure is turned around.
    against : str or sequence of str
        Of ``"loss_gap"``, ``"error_gap"`` (test minus train), ``"test_loss"`` and ``"test_error"``.
    measures : str or sequence of str, optional
        Default: all of the table.
    cluster : str or sequence of str, optional
        Coordinates of the models; models that agree in all of them are one cluster, as the seeds of one configuration
        are, and are drawn together; a model without a value there stands alone. Default ``"configuration"`` if the
        table has it, else each model by itself.
    given : str, optional
        The coordinate whose influence ``tau_partial`` takes out; None for no partial tau.
    group : str or sequence of str, optional
        Coordinates; tau is taken within each group of models (three or more) that agree in all of them, and its mean
        and its worst case are returned: a measure that only tells optimizers apart fails within each optimizer.
    n_bootstrap : int
        Resamples behind each interval, at least 1.
    seed : int
        Seed of the resamples.

    Returns
    -------
    xr.Dataset
        With the dims (against, measure); numbers are in [-1, 1] and NaN where all values of one side are equal::

            tau, tau_low, tau_high    float64  Kendall's tau-b; 95 % percentile bootstrap over clusters, of 3 or more
            rho, rho_low, rho_high    float64  Spearman's rho, likewise
            tau_test_low, .._high     float64  the middle 95 % of tau when the test examples are drawn anew, the same
                                               for all models: how far that moves tau, pulled towards 0. No interval
                                               for the true tau (see Notes). NaN where the table has no values per
                                               test example
            tau_partial, .._low, .._high  float64  given `given`; tau itself where that does not vary
            tau_group_mean, .._min    float64  over groups; only with `group`
            tau_group_min_at          str      the group of the smallest tau
            n_groups                  int64    groups with a tau
            n_models, n_clusters      int64    that have both values
            n_dropped, n_censored     int64    models without one of the values (NaN); whose value is only a bound
            verdict                   str      "positive", "negative" or "undecided": the sign that the interval of
                                               tau leaves; undecided with fewer than 5 clusters

        Attributes: ``n_bootstrap``, ``seed``, ``level``, ``cluster``, ``group``, ``given``, and ``note``, which says
        what makes the numbers doubtful, or is empty. The intervals hold the chance of which clusters there are; none
        holds that of the test examples as well.

    Raises
    ------
    TypeError
        If `table` is no Dataset.
    ValueError
        If there is one model only, or a name is unknown.

    Notes
    -----
    Few test examples blur the order of the models, which pulls tau towards 0 (in expectation); drawing them anew blurs
    it once more. So ``tau_test_low`` and ``tau_test_high`` lie too near to 0 twice over, and cover the tau that endless
    test examples would give less often than 95 %. In a simulation of 24 models with true errors around 10 %, images
    that are easy or hard for all alike, and a true tau of 0.6, they covered it in so many of 100 cases::

        test examples  s.d. of the true errors  tau found  covered  reflected interval
        360            0.3 points               0.11        1       17
        360            2 points                 0.48       29       79
        10,000         0.3 points               0.44       24       72
        10,000         2 points                 0.58       94       82

    (and 92 and 84 where the true tau is 0, of 360 examples and 2 points). The reflected (basic) bootstrap interval,
    ``2 tau - q``, is no 95 % interval either, and worse where the examples are enough; so neither is offered as one.
    A range that lies away from 0 does say that the order is no accident of the draw; one near 0 does not say that the
    true tau is.

    References
    ----------
    Jiang et al. (2020), Fantastic generalization measures and where to find them, sections 2 and 3: Kendall's tau over
    models, and within groups. Dziugaite et al. (2020), In search of robust measures of generalization: the worst
    case beside the average.

    Examples
    --------
    >>> import xarray as xr
    >>> value = [[1.0], [2.0], [4.0], [3.0], [5.0], [6.0]]
    >>> gap = ("model", [0.01, 0.02, 0.03, 0.04, 0.05, 0.06])
    >>> table = xr.Dataset(
    ...     {"value": (("model", "measure"), value)},
    ...     coords={"measure": ["trace"], "error_gap": gap, "train_loss": ("model", [0.0] * 6)},
    ... )
    >>> float(rank_correlation(table, n_bootstrap=200).tau.item().__round__(3))
    0.867
    """
    targets, names = choose(table, against, measures)
    n_bootstrap = require_whole("n_bootstrap", n_bootstrap, least=1)
    if cluster is None and "configuration" in table.coords:
        cluster = "configuration"
    clusters = _clusters(table, cluster)
    groups = None if group is None else labels_of(table, group, "group")

    # One row per entry, target by target: the measures x and the targets y, shapes (k, n).
    value = table["value"].transpose("measure", "model").sel(measure=names)
    signs = signs_of(value)[:, None]
    x = np.tile(value.values.astype(np.float64) * signs, (len(targets), 1))
    censored = table["censored"] if "censored" in table else xr.zeros_like(table["value"], dtype=np.int8)
    is_bound = censored.transpose("measure", "model").sel(measure=names).values != 0
    bounds = np.tile(is_bound * signs, (len(targets), 1))  # the true value is larger; where turned around, smaller
    y = np.repeat([_ranked(table[name].values) for name in targets], len(names), axis=0)
    valid = ~(np.isnan(x) | np.isnan(y))
    found: dict[str, np.ndarray] = {
        "tau": _each(resampled_tau, x, y, valid, bounds),
        "rho": _each(resampled_rho, x, y, valid, bounds),
        "n_models": valid.sum(axis=1),
        "n_clusters": np.array([len(np.unique(clusters[row])) for row in valid]),
        "n_dropped": (~valid).sum(axis=1),
    }
    if "censored" in table:
        found["n_censored"] = ((bounds != 0) & valid).sum(axis=1)

    drawn = {name: np.full((n_bootstrap, len(x)), np.nan) for name in ("tau", "rho", "tau_test")}
    for rows, mask, counts in _resamples(valid, clusters, n_bootstrap, seed):
        chosen = np.ix_(rows, mask)
        drawn["tau"][:, rows] = resampled_tau(x[chosen], y[chosen], counts, bounds[chosen])
        drawn["rho"][:, rows] = resampled_rho(x[chosen], y[chosen], counts, bounds[chosen])
    for rows, mask, redrawn in _redrawn_targets(table, targets, y, valid, n_bootstrap, seed):
        chosen = np.ix_(rows, mask)
        drawn["tau_test"][:, rows] = redrawn_tau(x[chosen], redrawn, bounds[chosen])
    if given is not None:
        z = np.broadcast_to(numbers_of(table, given, "given"), x.shape)
        found["tau_partial"], drawn["tau_partial"] = _partial(x, y, z, valid, bounds, clusters, n_bootstrap, seed)
    for name, draws in drawn.items():
        found[f"{name}_low"], found[f"{name}_high"] = interval(draws, LEVEL)
        if name != "tau_test":  # two configurations resampled are in the one order or in none: no interval
            for end in ("low", "high"):
                found[f"{name}_{end}"] = np.where(found["n_clusters"] < 3, np.nan, found[f"{name}_{end}"])
    if groups is not None:
        found |= _within_groups(x, y, valid, bounds, groups)
    found["verdict"] = _verdicts(found)

    result = _labelled(found, targets, names)
    if "measure_sharper" in table.coords:
        result.coords["measure_sharper"] = ("measure", value["measure_sharper"].values.astype(str))
    result.attrs = {
        "n_bootstrap": n_bootstrap,
        "seed": seed,
        "level": LEVEL,
        "cluster": _joined(cluster or "model"),
        "group": _joined(group or "none"),
        "given": given or "none",
        "note": _note(result),
    }
    if (result["n_clusters"] < ENOUGH_CLUSTERS).any():
        log.warning("rank_correlation: %s", result.attrs["note"])
    return result


def _clusters(table: xr.Dataset, cluster: str | Sequence[str] | None) -> np.ndarray:
    alone = np.array([f"model {place:06}" for place in range(table.sizes["model"])])
    if cluster is None:
        return alone
    labels = labels_of(table, cluster, "cluster")
    return np.where(labels == "", alone, labels)  # not all those whose configuration is unknown are of one


def _ranked(values: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """Round to 12 digits of the largest (of `like`), so that 0.15 - 0.1 and 0.25 - 0.2 are the tie that they are."""
    like = values if like is None else like
    largest = np.abs(like[np.isfinite(like)]).max(initial=0.0)
    return np.round(values.astype(np.float64), 12 - int(np.ceil(np.log10(largest)))) if largest > 0 else values


def _each(correlate: Callable, x: np.ndarray, y: np.ndarray, valid: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Correlate the valid models of each entry, every model once."""
    once = np.ones((1, x.shape[1]))
    entries = zip(x[:, None], y[:, None], bounds[:, None], valid, strict=True)
    return np.array(
        [correlate(one[:, m], other[:, m], once[:, m], bound[:, m]).item() for one, other, bound, m in entries]
    )


def _by_mask(valid: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Go over the sets of models that entries share: the entries' rows, and the mask of the models."""
    masks, which = np.unique(valid, axis=0, return_inverse=True)
    for place, mask in enumerate(masks):
        yield np.flatnonzero(which.ravel() == place), mask


def _resamples(
    valid: np.ndarray, clusters: np.ndarray, n_bootstrap: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Resample the clusters of each set of models; sets of a single cluster, which cannot vary, are left out."""
    for rows, mask in _by_mask(valid):
        if len(np.unique(clusters[mask])) > 1:
            generator = stream("rank_correlation", "clusters", seed)
            yield rows, mask, cluster_counts(clusters[mask], n_bootstrap, generator)


def _redrawn_targets(
    table: xr.Dataset, targets: list[str], y: np.ndarray, valid: np.ndarray, n_bootstrap: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Resample the test examples: rows, models, and the target on each resample, shape ``(n_bootstrap, n)``.

    The train side of a gap stays. Entries with a model that has no finite value of some example are left out.
    """
    per_target = len(y) // len(targets)
    kinds = [target.replace("test", "").replace("gap", "").strip("_") for target in targets]
    present = [kind for kind in dict.fromkeys(kinds) if f"test_example_{kind}" in table]
    if not present:
        return
    values = np.stack([table[f"test_example_{kind}"].transpose("model", "example").values for kind in present])
    values = values.reshape(-1, values.shape[-1]).astype(np.float64)
    values[~np.isfinite(values).all(axis=1)] = np.nan
    moves = example_means(values, n_bootstrap, stream("rank_correlation", "examples", seed)) - values.mean(axis=1)
    by_kind = dict(zip(present, np.split(moves, len(present), axis=1), strict=True))
    for place, kind in enumerate(kinds):
        if kind not in by_kind:
            continue
        mine = y[place * per_target]
        redrawn = _ranked(mine + by_kind[kind], like=mine)
        for rows, mask in _by_mask(valid[place * per_target : (place + 1) * per_target]):
            if mask.sum() > 1 and np.isfinite(redrawn[:, mask]).all():
                yield rows + place * per_target, mask, redrawn[:, mask]


def _partial(
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    valid: np.ndarray,
    bounds: np.ndarray,
    clusters: np.ndarray,
    n_bootstrap: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Partial tau of each entry given z, and of its resamples: shapes ``(k,)`` and ``(n_bootstrap, k)``."""
    valid = valid & ~np.isnan(z)
    sides = ((x, y, bounds), (x, z, bounds), (y, z, np.zeros(y.shape)))
    point = partial_tau(*(_each(resampled_tau, one, other, valid, bound) for one, other, bound in sides))
    draws = np.full((n_bootstrap, len(x)), np.nan)
    for rows, mask, counts in _resamples(valid, clusters, n_bootstrap, seed):
        chosen = np.ix_(rows, mask)
        taus = (resampled_tau(one[chosen], other[chosen], counts, bound[chosen]) for one, other, bound in sides)
        draws[:, rows] = partial_tau(*taus)
    draws[:, np.isnan(point)] = np.nan  # no interval around nothing
    return point, draws


def _within_groups(
    x: np.ndarray, y: np.ndarray, valid: np.ndarray, bounds: np.ndarray, groups: np.ndarray
) -> dict[str, np.ndarray]:
    """Take tau within each group of each entry, its mean and its smallest."""
    taus = {}  # of each group, by entry; NaN where it is too small or has no order
    for name in filter(None, np.unique(groups)):
        inside = valid & (groups == name)
        enough = inside.sum(axis=1) >= _LEAST_IN_GROUP
        taus[name] = np.where(enough, _each(resampled_tau, x, y, inside, bounds), np.nan)
    columns: dict[str, list] = {"tau_group_mean": [], "tau_group_min": [], "tau_group_min_at": [], "n_groups": []}
    for place in range(len(x)):
        known = {name: tau[place] for name, tau in taus.items() if not np.isnan(tau[place])}
        worst = min(known, key=lambda name: known[name]) if known else ""
        columns["tau_group_mean"].append(np.mean(list(known.values())) if known else np.nan)
        columns["tau_group_min"].append(known[worst] if known else np.nan)
        columns["tau_group_min_at"].append(str(worst))
        columns["n_groups"].append(len(known))
    return {name: np.array(values) for name, values in columns.items()}


def _verdicts(found: dict[str, np.ndarray]) -> np.ndarray:
    enough = found["n_clusters"] >= ENOUGH_CLUSTERS
    sign = np.where(found["tau_high"] < 0, "negative", "undecided")  # a comparison with NaN is False
    return np.where(enough, np.where(found["tau_low"] > 0, "positive", sign), "undecided")


def _labelled(found: dict[str, np.ndarray], targets: list[str], names: list[str]) -> xr.Dataset:
    order = ["tau", "tau_low", "tau_high", "verdict", "n_models", "n_clusters", "n_dropped", "n_censored"]
    order += ["rho", "rho_low", "rho_high", "tau_test_low", "tau_test_high"]
    order += [f"tau_partial{end}" for end in ("", "_low", "_high")]
    variables = {}
    for name in [*(name for name in order if name in found), *(name for name in found if name not in order)]:
        base = name.removesuffix("_low").removesuffix("_high")
        end = {"": "", "_low": ", lower end", "_high": ", upper end"}[name[len(base) :]]
        attrs = {"long_name": _LONG_NAMES[base] + end} | ({} if found[name].dtype.kind == "U" else {"units": "1"})
        variables[name] = (("against", "measure"), found[name].reshape(len(targets), len(names)), attrs)
    return xr.Dataset(variables, coords={"against": targets, "measure": names})


def _note(result: xr.Dataset) -> str:
    notes = []
    if (few := int(result["n_clusters"].min())) < ENOUGH_CLUSTERS:
        notes.append(
            f"{few} {'cluster' if few == 1 else 'clusters'} of models: with fewer than {ENOUGH_CLUSTERS} even a "
            "perfect order comes by chance more often than once in 20 times, so the number means little."
        )
    if undefined := int(result["tau"].isnull().sum()):
        notes.append(
            f"{undefined} of {result['tau'].size} correlations are NaN: all models with a value are equal in the "
            "measure or in what it is held against, or there are fewer than two."
        )
    if "n_censored" in result and (bounds := int(result["n_censored"].max())):
        notes.append(
            f"Up to {bounds} models have only a bound as their value: pairs whose order it leaves open count as ties."
        )
    if dropped := int(result["n_dropped"].max()):
        notes.append(f"Up to {dropped} models have no value (NaN) and are left out.")
    return " ".join(notes)


def _joined(names: str | Sequence[str]) -> str:
    return names if isinstance(names, str) else ", ".join(names)
