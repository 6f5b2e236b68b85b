"""The methods paragraph of a result, in plain English from its own attributes. Torch-free."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import xarray as xr

from lltoolkit.errors import require_choice
from lltoolkit.labelled.facts import config_of, counts_of, kind_of, measures_of, read_json, recipes_of
from lltoolkit.labelled.phrases import (
    join,
    known,
    listed,
    number,
    percent,
    plural,
    tell_audit,
    tell_cells,
    tell_data,
    tell_hashes,
    tell_loss,
    tell_minimizer,
    tell_model,
    tell_normalization,
    tell_numerics,
    tell_parameters,
    tell_software,
)
from lltoolkit.labelled.schema import axes_of
from lltoolkit.labelled.where import tell_grid, tell_shares, tell_subspace

FORMS = ("text", "latex")
SURFACES = {1: "loss line", 2: "loss surface", 3: "loss volume"}
LATEX = str.maketrans(
    {character: rf"\{character}" for character in "#$%&_{}"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
)
_OF_A_MEASURE = ("measure", "seed", "split", "parameters")  # told in words, or the same for all


def describe(result: xr.Dataset, *, form: Literal["text", "latex"] = "text") -> str:
    """Write the methods paragraph of a result.

    Parameters
    ----------
    result : xr.Dataset
        Of any kind.
    form : {"text", "latex"}
        "latex": characters that LaTeX reads as commands are escaped.

    Returns
    -------
    str
        One paragraph, to be pasted into an appendix: network, data, loss, where and how it was measured, measured
        errors, hashes. Only what the result itself tells; what it does not tell is left out.

    Raises
    ------
    SchemaError
        If it is no result of lltoolkit.
    ValueError
        If `form` is unknown.

    Examples
    --------
    >>> attrs = {"kind": "surface", "model": "vgg9", "n_params": 2675818, "buffers": "recompute"}
    >>> print(describe(xr.Dataset(attrs=attrs)).partition(". ")[0])
    The loss surface of vgg9 (2,675,818 parameters) was computed
    """
    require_choice("form", form, FORMS)
    kind = kind_of(result)
    text = join([*_KINDS[kind](result), tell_hashes(result.attrs)])
    return text.translate(LATEX) if form == "latex" else text


def _surface(result: xr.Dataset) -> Iterator[str]:
    attrs = result.attrs
    noun = SURFACES.get(len(axes_of(result)), "loss surface")
    subject, verb = (f"{noun}s", "were") if len(recipes_of(result)) > 1 else (noun, "was")
    yield f"The {subject} of {tell_model(attrs)} {verb} computed{tell_software(attrs)}"
    yield tell_data(result)
    yield tell_subspace(result)
    yield tell_grid(result)
    yield tell_numerics(attrs, config_of(result))
    yield tell_cells(result)
    yield tell_audit(result)
    yield tell_minimizer(attrs)


def _curvature(result: xr.Dataset) -> Iterator[str]:
    attrs = result.attrs
    split = f"{attrs['split']} " if known(attrs, "split") else ""
    yield (
        f"The smallest and the largest eigenvalue of the Hessian of the {split}loss of {tell_model(attrs)} were "
        f"computed{tell_software(attrs)}"
    )
    yield tell_data(result)
    yield tell_subspace(result)
    yield tell_grid(result, "Both were computed")
    yield _of_hessian(attrs)
    yield tell_numerics(attrs, config_of(result))
    yield tell_cells(result)
    yield from _convergence(attrs)
    yield tell_minimizer(attrs)


def _of_hessian(attrs: Mapping[Any, Any]) -> str:
    """Say of which parameters, and in which metric."""
    variables = f"{number(attrs['n_variables'])} " if known(attrs, "n_variables") is not None else ""
    chosen = {"all": "all parameters that move", "weights": "the weights with two axes or more"}
    parameters = known(attrs, "parameters")
    of = chosen.get(str(parameters), f"the parameters chosen by {parameters}") if parameters is not None else ""
    metrics = {
        "euclidean": "",
        "filter": "Eigenvalues are of D H D, with D the norm of each weight's filter over the square root of its size",
    }
    constants = "batch-norm statistics are constants in it" if attrs.get("buffers_in_hessian") == "constants" else ""
    first = f"The Hessian is taken in {variables}variables, {of}" if of else ""
    return join(["; ".join(part for part in (first, constants) if part), metrics.get(str(attrs.get("metric")), "")])


def _convergence(attrs: Mapping[Any, Any]) -> Iterator[str]:
    if known(attrs, "tol") is not None:
        yield (
            "Both come from Lanczos iterations with full reorthogonalization, ended when both residuals were at most "
            f"{number(attrs['tol'])} times the largest eigenvalue"
        )
    if known(attrs, "n_unconverged") is not None:
        count = int(attrs["n_unconverged"])
        yield f"{plural(count, 'point')} did not meet that" if count else "All points met that"
    if attrs.get("n_audit"):
        largest = known(attrs, "audited_max")
        seen = (
            f" (the largest difference is {number(largest)} of the largest eigenvalue)" if largest is not None else ""
        )
        count, missed = int(attrs["n_audit"]), int(attrs.get("n_audit_missed", 0))
        off = f"{missed:,} differ" if missed > 1 else f"{'1' if missed else 'none'} differs"
        yield (
            f"As an audit, {plural(count, 'point')} drawn at random {'was' if count == 1 else 'were'} computed again "
            f"from a random start and to a tighter tolerance; {off} by more than the tolerance{seen}"
        )
    if attrs.get("n_audit_unconverged"):
        yield f"{plural(int(attrs['n_audit_unconverged']), 'further audit')} did not converge"
    if known(attrs, "n_hvp_total") is not None:
        audit = f", {number(attrs['n_hvp_audit'])} of them for the audit" if attrs.get("n_hvp_audit") else ""
        yield f"This took {number(attrs['n_hvp_total'])} Hessian-vector products{audit}"


def _trajectory(result: xr.Dataset) -> Iterator[str]:
    attrs = result.attrs
    yield f"The path of {_training(attrs)} was projected{tell_software(attrs)}"
    yield _checkpoints(result)
    yield tell_subspace(result)
    yield (
        "Coordinates are those of the nearest point (least squares); residuals are the norm of what lies outside over "
        "the norm of the displacement from the origin"
    )
    if (share := known(attrs, "captured_share")) is not None:
        residual = result["residual"].values if "residual" in result else np.array([np.nan])
        most = f"; the residual is at most {number(np.nanmax(residual))}" if np.isfinite(residual).any() else ""
        yield f"The subspace holds {percent(share)} of the squared displacements, summed over checkpoints{most}"
    if "loss" in result:
        yield tell_data(result, ", of the checkpoints themselves and of the points below them,")
        yield tell_numerics(attrs, config_of(result))


def _training(attrs: Mapping[Any, Any]) -> str:
    run = f"the training {str(attrs['run'])!r}" if known(attrs, "run") else "a training"
    return f"{run} of {tell_model(attrs)}"


def _checkpoints(result: xr.Dataset) -> str:
    if "step" not in result.dims or not result.sizes["step"]:
        return ""
    steps = result["step"].values
    skipped = int(result.attrs.get("n_skipped", 0) or 0)
    left = f"; {plural(skipped, 'checkpoint')} could not be used" if skipped else ""
    of = plural(len(steps), "checkpoint")
    return f"The path has {of}, from optimizer step {number(steps[0])} to {number(steps[-1])}{left}"


def _statistics(result: xr.Dataset) -> Iterator[str]:
    attrs = result.attrs
    if "step" in result.dims:
        yield f"Statistics of the path of {_training(attrs)} were computed{tell_software(attrs)}"
        yield _checkpoints(result)
        if attrs.get("sketch"):
            yield f"They are of random projections of the weights to {number(attrs['sketch'])} numbers (CountSketch)"
        if "explained_variance" in result:
            shares, null = result["explained_variance"].values[:2], None
            if "explained_variance_null" in result:
                null = result["explained_variance_null"].values[:2].tolist()
            first = "first two principal components" if len(shares) > 1 else "first principal component"
            yield tell_shares(shares.tolist(), null, f"Its {first}, taken about the last checkpoint,")
        return
    noun = SURFACES.get(int(_dims_told(attrs)), "loss surface")
    yield f"Statistics of the {noun} of {tell_model(attrs)} were computed{tell_software(attrs)}"
    yield _options_of_statistics(attrs)
    yield tell_data(result)
    yield tell_subspace(result)
    yield tell_numerics(attrs, config_of(result))
    yield tell_audit(result)
    yield tell_minimizer(attrs)


def _dims_told(attrs: Mapping[Any, Any]) -> int:
    told = read_json(attrs.get("subspace"))
    return int(told.get("dims", 2)) if isinstance(told, Mapping) else 2


def _options_of_statistics(attrs: Mapping[Any, Any]) -> str:
    told = read_json(attrs.get("statistics"))
    if not isinstance(told, Mapping):
        return ""
    scales = {
        "log": "of the natural logarithm of the {}",
        "range": "of the {} as a share of its range",
        "plain": "of the {} as it is",
    }
    scale = scales.get(str(told.get("scale")), "of the {}").format(told.get("var", "loss"))
    persistence, window = told.get("persistence"), told.get("window")
    least = persistence if isinstance(persistence, int | float) else told.get("least_persistence")
    by = "" if isinstance(persistence, int | float) else " and above the errors of the points"
    counted = f"; minima count that persist over {number(least)}{by}" if least is not None else ""
    within = f"; roughness is taken in windows of half-width {number(window)}" if window is not None else ""
    return f"Minima and roughness are {scale}{counted}{within}"


def _spectrum(result: xr.Dataset) -> Iterator[str]:
    attrs = result.attrs
    split = f"{attrs['split']} " if known(attrs, "split") else ""
    yield (
        f"The density of the eigenvalues of the Hessian of the {split}loss of {tell_model(attrs)} was "
        f"estimated{tell_software(attrs)}"
    )
    yield tell_data(result)
    yield _of_hessian({**attrs, "n_variables": attrs.get("n_weights")})
    probes = result.sizes.get("probe")
    if probes:
        seed = f" (seed {attrs['seed']})" if known(attrs, "seed") is not None else ""
        nodes = f", {number(result.sizes['node'])} Lanczos steps each" if "node" in result.sizes else ""
        runs = plural(int(probes), "stochastic Lanczos quadrature")
        yield f"It is the mean of {runs} from Gaussian vectors{seed}{nodes}"
    if known(attrs, "bandwidth") is not None:
        yield f"The nodes were smoothed by a Gaussian of standard deviation {number(attrs['bandwidth'])}"
    yield tell_numerics(attrs, config_of(result))
    yield tell_minimizer(attrs)


def _sharpness(result: xr.Dataset) -> Iterator[str]:
    attrs = result.attrs
    if "step" in result.dims:
        steps = result["step"].values
        among = f" (optimizer steps {number(steps[0])} to {number(steps[-1])})" if len(steps) else ""
        what = f"{plural(len(steps), 'checkpoint')}{among} of a training"
    else:
        what = plural(int(result.sizes.get("model", 0)), "minimizer")
    yield f"The sharpness of {what} of {tell_model(attrs)} was measured{tell_software(attrs)}"
    yield from _objectives(config_of(result))
    measures = measures_of(result)
    splits, seeds = (
        sorted({str(options[name]) for _, options in measures if name in options}) for name in ("split", "seed")
    )
    told = [_measure(result, place, len(splits) == 1) for place in range(len(measures))]
    yield f"Measures{f', on the {splits[0]} examples' if len(splits) == 1 else ''}: {'; '.join(told)}" if told else ""
    one = "the seed" if len(seeds) == 1 else "one of the seeds"
    yield f"All that is drawn has {one} {listed(seeds)}" if seeds else ""
    counts = counts_of(result)
    if counts.get("missing"):
        yield f"{counts['missing']:,} of {plural(sum(counts.values()), 'value')} are missing"
    if "censored" in result and (n := int((result["censored"].values == 1).sum())):
        yield f"{n:,} of {plural(result['censored'].size, 'value')} lie at the end of the search range, and are bounds"
    if known(attrs, "stability") and not str(attrs["stability"]).startswith("unknown"):
        yield f"The stability threshold is that of {attrs['stability']}"


def _objectives(config: Mapping[str, Any]) -> Iterator[str]:
    """Tell loss, examples and arithmetic, where all rows share them."""
    told = [each for each in (config.get("objectives") or {}).values() if isinstance(each, Mapping)]
    if not told:
        return
    losses = list(dict.fromkeys(tell_loss(each) for each in told))
    if losses[0]:
        yield f"The loss is the {losses[0]}" if len(losses) == 1 else f"The losses are the {listed(losses)}"
    counts = told[0].get("n_examples")
    if isinstance(counts, Mapping) and all(each.get("n_examples") == counts for each in told):
        in_order = sorted(counts, key=lambda split: (split != "train", split))
        yield f"Examples: {listed(f'{number(counts[split])} {split}' for split in in_order)}"
    if len({(each.get("buffers"), each.get("dtype"), each.get("precision")) for each in told}) == 1:
        yield tell_numerics(told[0], told[0])


def _measure(table: xr.Dataset, place: int, same_split: bool) -> str:
    label, options = measures_of(table)[place]
    long_name, kind = (
        str(table[name].values[place]) if name in table.variables else ""
        for name in ("measure_long_name", "measure_kind")
    )
    details = [label, kind] + ([f"{options['split']} examples"] if not same_split and options.get("split") else [])
    details += [
        name if value is True else f"{name} = {value}"
        for name, value in options.items()
        if name not in _OF_A_MEASURE and value is not None and value is not False
    ]
    details += [tell_parameters(options.get("parameters")).strip()]
    return f"{long_name or label} ({', '.join(detail for detail in details if detail)})"


def _history(result: xr.Dataset) -> Iterator[str]:
    attrs, config = result.attrs, config_of(result)
    yield f"A training of {tell_model(attrs)} was recorded{tell_software(attrs)}"
    data: Mapping[str, Any] = config.get("data") or {}
    if data.get("name"):
        yield f"It was trained on {data['name']}"
    yield tell_normalization(data.get("normalize"))
    words = {
        "optimizer": "optimizer",
        "lr": "learning rate",
        "momentum": "momentum",
        "batch_size": "batch size",
        "weight_decay": "weight decay",
        "epochs": "epochs",
        "schedule": "learning-rate schedule",
        "augment": "augmentation",
        "seed": "seed",
    }
    told = [f"{word} {config[name]}" for name, word in words.items() if config.get(name) is not None]
    yield f"Recipe: {', '.join(told)}" if told else ""
    if "step" in result.dims and result.sizes["step"]:
        steps = result["step"].values
        times = plural(len(steps), "time")
        yield f"It was recorded {times}, from optimizer step {number(steps[0])} to {number(steps[-1])}"


_KINDS: dict[str, Callable[[xr.Dataset], Iterator[str]]] = {
    "surface": _surface,
    "curvature": _curvature,
    "trajectory": _trajectory,
    "statistics": _statistics,
    "spectrum": _spectrum,
    "sharpness": _sharpness,
    "history": _history,
}
