"""Judge the paper's claims by the rules of PROTOCOL.md, from the tables of the study: numbers, intervals, verdicts."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from minimizers import minimizers
from scipy import stats

import lltoolkit as ll

SHARPNESS = "filter_curvature"
COUNTERPARTS = ("lambda_max", "trace", "weight_norm")
TARGETS = ("test_error", "error_gap", "test_loss", "loss_gap")
FITTED = 0.05  # training error
NOTABLE = 0.2  # tau
FLOOR = 1e-6  # nat, of a rise along a line
LEAST = 3  # blocks or shapes behind an interval
LEAST_CLUSTERS = 5  # behind a verdict on tau
PAIR = ["optimizer", "lr", "weight_decay", "seed"]
BLOCK = ["optimizer", "lr"]
SHAPE = ["depth", "width", "shortcut"]
GRIDS = ("digits-grid", "cifar10-grid")
EQUAL = "digits-equal-loss"
TABLES = ("digits-grid", EQUAL, "digits-vgg", "digits-shapes", "cifar10-grid")
DIGITS = ("digits-grid", "digits-vgg", "digits-shapes")  # together: ALL_DIGITS
ALL_DIGITS = "digits-all"
DRAWN = (*GRIDS, ALL_DIGITS)
# Across families a network and its recipe are one cluster whatever the epochs: they share initial weights and data.
CLUSTER = ["network", "width", "shortcut", "optimizer", "lr", "batch_size", "weight_decay", "schedule"]
Row = dict[str, Any]


def judge(work: Path, *, echo: Callable[[str], object], n_bootstrap: int = 2000) -> list[Row]:
    """Write ``verdicts.json``, ``correlations.csv`` and the figures, from what has been measured.

    Parameters
    ----------
    work : Path
        Folder with the tables, ``lines/``, and the folders of the trainings, of which only the diverged are looked at.
    echo : callable
        Takes lines about the outcome.
    n_bootstrap : int
        Resamples behind the interval of a correlation.

    Returns
    -------
    list of dict
        The rows: ``claim``, ``primary``, ``data``, ``statistic``, ``measure``, ``estimate``, ``low``, ``high``; ``n``
        models, blocks or shapes in the estimate; ``n_left_out`` of the planned models, pairs or shapes that are not
        in it, for whatever reason; ``verdict``.
    """
    tables = {name: ll.open_result(path) for name in TABLES if (path := work / f"{name}.sharpness.nc").exists()}
    counts = _counts(work, tables)
    digits = [tables[name] for name in DIGITS if name in tables]
    if len(digits) > 1:
        tables[ALL_DIGITS] = join(digits)
    lines = {name: _read_lines(name, work / "lines" / f"{name}.json") for name in (*GRIDS, "digits-vgg")}
    rows: list[Row] = []
    correlations = []
    for name, table in tables.items():
        if name != "digits-vgg":  # four models
            figures = work if name in DRAWN else None
            rows += _correlations(name, table, n_bootstrap, kept=correlations, figures=figures)
    for name in GRIDS:
        if name in tables:
            rows += _flips(name, frame(tables[name]), lines[name])
    rows += _pair_of_the_paper(tables.get("digits-vgg"), lines["digits-vgg"])
    for name in (*GRIDS, EQUAL):
        if name in tables:
            rows += _batches(name, frame(tables[name]))
    if "digits-shapes" in tables:
        rows += _shapes(frame(tables["digits-shapes"]))
    verdicts = {claim: _together(claim, rows) for claim in ("1", "2", "3", "4a", "4b", "5a", "5b")}
    content = {"verdicts": verdicts, "models": counts, "rows": rows}
    (work / "verdicts.json").write_text(json.dumps(_plain(content), indent=1) + "\n")
    if correlations:
        pd.concat(correlations).to_csv(work / "correlations.csv", index=False, float_format="%.6g")
    for name, told in counts.items():
        echo(f"{name}: {', '.join(f'{n} {what}' for what, n in told.items() if isinstance(n, int))}")
    for claim, verdict in verdicts.items():
        echo(f"claim {claim}: {verdict}")
    return rows


def unnormalized_rise(loss: xr.DataArray) -> dict[str, float]:
    """Read the un-normalized sharpness of both ends off a line.

    Parameters
    ----------
    loss : xr.DataArray
        Over ``alpha``, with the small batch's minimizer at 0 and the large batch's at 1.

    Returns
    -------
    dict
        ``rise_small`` and ``rise_large`` [nat]: the rise of the loss a tenth of the way to the other end.
    """

    def at(alpha: float) -> float:
        return float(loss.sel(alpha=alpha, method="nearest", tolerance=1e-9))

    return {"rise_small": at(0.1) - at(0.0), "rise_large": at(0.9) - at(1.0)}


def join(tables: Sequence[xr.Dataset]) -> xr.Dataset:
    """Put the models of tables of the same measures and test examples into one."""
    same = {"data_vars": "minimal", "coords": "minimal", "compat": "equals", "join": "exact"}
    return xr.concat(tables, dim="model", combine_attrs="drop_conflicts", **same)


def frame(table: xr.Dataset) -> pd.DataFrame:
    """Turn a table into one row per model: its coordinates, and a column for each measure."""
    coords = {str(name): table[name].values for name in table.coords if table[name].dims == ("model",)}
    values = {str(name): table["value"].sel(measure=name).values for name in table["measure"].values}
    return pd.DataFrame(coords | values)


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Take the mean and its 95 % t interval.

    Parameters
    ----------
    values : sequence of float
        NaN are left out.

    Returns
    -------
    (float, float, float)
        Mean and both ends; NaN ends for fewer than `LEAST` values.

    Examples
    --------
    >>> t_interval([1.0, 2.0, 3.0])[0]
    2.0
    """
    x = np.asarray(values, dtype=float)
    x = x[np.isfinite(x)]
    mean = float(x.mean()) if len(x) else math.nan
    if len(x) < LEAST:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return mean, mean - half, mean + half


def slope(x: Sequence[float], y: Sequence[float], groups: Sequence[Any]) -> tuple[float, float, float]:
    """Fit a common slope of `y` over `x`; each group has an intercept of its own.

    Parameters
    ----------
    x, y, groups : sequence
        Of one length; where `y` is NaN, it is left out.

    Returns
    -------
    (float, float, float)
        Slope and the ends of its 95 % t interval; NaN where there is too little to tell.

    Examples
    --------
    >>> slope([0, 1, 2, 0, 1, 2], [0, 2, 4, 1, 3, 5], [0, 0, 0, 1, 1, 1])[0].__round__(6)
    2.0
    """
    x, y, groups = (np.asarray(each) for each in (x, y, groups))
    finite = np.isfinite(y)
    x, y, groups = x[finite].astype(float), y[finite].astype(float), groups[finite]
    design = np.column_stack([x, *(groups == each for each in np.unique(groups))]).astype(float)
    freedom = len(y) - design.shape[1]
    if len(y) < 2 or np.linalg.matrix_rank(design) < design.shape[1]:
        return math.nan, math.nan, math.nan
    found = np.linalg.lstsq(design, y, rcond=None)[0]
    if freedom < 1:
        return float(found[0]), math.nan, math.nan
    variance = float(((y - design @ found) ** 2).sum()) / freedom
    half = float(stats.t.ppf(0.975, freedom) * math.sqrt(variance * np.linalg.inv(design.T @ design)[0, 0]))
    return float(found[0]), float(found[0] - half), float(found[0] + half)


def _plain(value: Any) -> Any:
    """Make JSON of rows: null where a number is NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _row(claim: str, primary: bool, data: str, statistic: str, measure: str, *numbers: float, **more: Any) -> Row:
    row: Row = {"claim": claim, "primary": primary, "data": data, "statistic": statistic, "measure": measure}
    return row | dict(zip(("estimate", "low", "high"), numbers, strict=True)) | more


def _sign(low: float, high: float, *, agrees: int = 1) -> str:
    """Judge by the sign of an interval; a comparison with NaN is False."""
    if low > 0:
        return "agrees" if agrees > 0 else "disagrees"
    if high < 0:
        return "disagrees" if agrees > 0 else "agrees"
    return "undecided"


def _fitted(table: xr.Dataset) -> xr.Dataset:
    return table.isel(model=np.flatnonzero(table["train_error"].values <= FITTED))


def _plan(name: str) -> pd.DataFrame:
    """List what a table should hold: the attributes of one model per row."""
    families = {ALL_DIGITS: DIGITS, EQUAL: ("digits-grid",)}.get(name, (name,))
    chosen = [each for each in minimizers() if each.family in families]
    return pd.DataFrame([each.attributes for each in chosen if name != EQUAL or each.recipe["seed"] == 0])


def _counts(work: Path, tables: Mapping[str, xr.Dataset]) -> dict[str, dict[str, Any]]:
    """Count, for each table, what became of the planned models; of equal loss, the absent never came down to it."""
    found: dict[str, dict[str, Any]] = {}
    for name in (*TABLES, "digits-constant"):
        diverged = [each.name for each in minimizers() if each.family == name and each.has_diverged(work)]
        found[name] = {"planned": len(_plan(name)), "diverged": len(diverged), "names of the diverged": diverged}
        if name in tables:
            table = tables[name]
            n = table.sizes["model"]
            told = {"measured": n, "absent": found[name]["planned"] - len(diverged) - n}
            told["above the training error"] = n - _fitted(table).sizes["model"]
            if name == EQUAL:
                told["from digits-constant"] = int((table["schedule"].values == "constant").sum())
            found[name] |= told
    return found


def _correlations(
    name: str, table: xr.Dataset, n_bootstrap: int, *, kept: list[pd.DataFrame], figures: Path | None = None
) -> list[Row]:
    rows = []
    n_planned = len(_plan(name))
    cluster = CLUSTER if name == ALL_DIGITS else "configuration"
    for models, subset in (("fitted models", _fitted(table)), ("all models", table)):
        if subset.sizes["model"] < 2:
            continue
        options = {"cluster": cluster, "group": "optimizer", "n_bootstrap": n_bootstrap}
        found = ll.rank_correlation(subset, against=TARGETS, **options)
        kept.append(found.to_dataframe().reset_index().assign(data=name, models=models))
        if models == "fitted models" and figures is not None:
            figure = ll.plot_sharpness(subset, against="test_error", group="optimizer", correlation=found)
            figure.savefig(figures / f"{name}.png", dpi=150)
        for measure in (SHARPNESS, *COUNTERPARTS):
            for target in TARGETS:
                one = found.sel(measure=measure, against=target)
                told = {key: one[key].item() for key in ("tau_test_low", "tau_test_high", "n_models", "n_clusters")}
                main = (name, models, measure, target) == ("cifar10-grid", "fitted models", SHARPNESS, "test_error")
                numbers = tuple(one[key].item() for key in ("tau", "tau_low", "tau_high"))
                told |= {"n": told.pop("n_models"), "models": models, "verdict": _of_tau(*numbers, told["n_clusters"])}
                told["n_left_out"] = n_planned - told["n"]
                rows.append(_row("1", main, name, f"tau with {target}", measure, *numbers, **told))
                partial = tuple(one[f"tau_partial{end}"].item() for end in ("", "_low", "_high"))
                told |= {"tau_test_low": math.nan, "tau_test_high": math.nan}
                told["verdict"] = _of_tau(*partial, told["n_clusters"])
                statistic = f"tau with {target} given train_loss"
                rows.append(_row("1", False, name, statistic, measure, *partial, **told))
    return rows


def _of_tau(tau: float, low: float, high: float, n_clusters: int) -> str:
    """Judge by the interval over configurations; the spread over test examples is only reported."""
    if n_clusters < LEAST_CLUSTERS:
        return "undecided"
    if tau >= NOTABLE and low > 0:
        return "agrees"
    return "disagrees" if high < NOTABLE else "undecided"


def _planned_pairs(name: str) -> pd.DataFrame:
    return _plan(name)[PAIR].drop_duplicates(ignore_index=True)


def _pairs(name: str, models: pd.DataFrame, measure: str, *, fitted: bool) -> pd.DataFrame:
    """Return the planned pairs of small and large batch with d = log10(large / small), NaN where that is not known."""
    if fitted:
        models = models[models["train_error"] <= FITTED]
    logs = models.assign(log=_log10(models[measure]))
    small, large = (logs.loc[logs["batch"] == batch, [*PAIR, "log"]] for batch in ("small", "large"))
    both = small.merge(large, on=PAIR, suffixes=("_small", "_large"))
    both["d"] = both["log_large"] - both["log_small"]
    return _planned_pairs(name).merge(both[[*PAIR, "d"]], how="left", on=PAIR)


def _log10(values: Iterable[float]) -> pd.Series:
    values = pd.Series(values, dtype=float)
    return np.log10(values.where(values > 0))


def _block_means(pairs: pd.DataFrame) -> tuple[tuple[float, float, float], dict[str, int]]:
    means = pairs.groupby(BLOCK)["d"].mean().dropna()
    return t_interval(means.to_numpy()), {"n": len(means), "n_left_out": int(pairs["d"].isna().sum())}


def _read_lines(name: str, path: Path) -> pd.DataFrame:
    """Read the planned pairs with d = log10(rise of the large batch / of the small batch), NaN where a rise is."""
    pairs = _planned_pairs(name)
    if not path.exists():
        return pairs.assign(d=math.nan)
    found = pd.DataFrame(json.loads(path.read_text()))
    small, large = (found[f"rise_{batch}"].astype(float).clip(lower=FLOOR) for batch in ("small", "large"))
    found["d"] = np.log10(large) - np.log10(small)
    return pairs.merge(found[[*PAIR, "d"]], how="left", on=PAIR)


def _flips(name: str, models: pd.DataFrame, lines: pd.DataFrame) -> list[Row]:
    """Claim 2: whether d changes its sign with weight decay."""
    both_fitted = _pairs(name, models.assign(there=1.0), "there", fitted=True)["d"].notna()
    sources = {"line": lines.assign(d=lines["d"].where(both_fitted))}
    sources |= {measure: _pairs(name, models, measure, fitted=True) for measure in (SHARPNESS, *COUNTERPARTS)}
    rows = []
    for measure, pairs in sources.items():
        by_decay = {decay: _block_means(chosen) for decay, chosen in pairs.groupby("weight_decay")}
        (_, low, high), (_, low_decay, high_decay) = (by_decay[decay][0] for decay in sorted(by_decay))
        if low > 0 and high_decay < 0:
            verdict = "agrees"
        elif (low > 0 and low_decay > 0) or (high < 0 and high_decay < 0):
            verdict = "disagrees"
        else:
            verdict = "undecided"
        for decay, (numbers, told) in by_decay.items():
            statistic = f"log10 large / small, weight decay {decay:g}"
            rows.append(_row("2", measure == "line", name, statistic, measure, *numbers, **told, verdict=verdict))
    return rows


def _pair_of_the_paper(table: xr.Dataset | None, lines: pd.DataFrame) -> list[Row]:
    sources = {"line": lines}
    if table is not None:
        names = (SHARPNESS, *COUNTERPARTS, "test_error")
        sources |= {name: _pairs("digits-vgg", frame(table), name, fitted=False) for name in names}
    rows = []
    for measure, pairs in sources.items():
        for pair in pairs.to_dict("records"):
            there = int(math.isfinite(pair["d"]))
            told = {"n": there, "n_left_out": 1 - there, "verdict": "undecided"}
            statistic = f"log10 large / small, weight decay {pair['weight_decay']:g}"
            rows.append(_row("2", False, "digits-vgg", statistic, measure, pair["d"], math.nan, math.nan, **told))
    return rows


def _batches(name: str, models: pd.DataFrame) -> list[Row]:
    """Claim 3: whether the large batch is sharper."""
    rows = []
    for chosen in ("fitted models", "all models"):
        for measure in (SHARPNESS, *COUNTERPARTS, "train_loss", "test_error"):
            pairs = _pairs(name, models, measure, fitted=chosen == "fitted models")
            for decay in (None, *sorted(pairs["weight_decay"].unique())):
                numbers, told = _block_means(pairs if decay is None else pairs[pairs["weight_decay"] == decay])
                statistic = "log10 large / small" + ("" if decay is None else f", weight decay {decay:g}")
                main = name in GRIDS and measure == SHARPNESS and decay is None and chosen == "fitted models"
                told |= {"models": chosen, "verdict": _sign(numbers[1], numbers[2])}
                rows.append(_row("3", main, name, statistic, measure, *numbers, **told))
    return rows


def _shapes(models: pd.DataFrame) -> list[Row]:
    """Claims 4 and 5: shortcuts, width, depth."""
    plan = _plan("digits-shapes")[SHAPE]
    rows = []
    for measure in (SHARPNESS, *COUNTERPARTS):
        main = measure == SHARPNESS
        logs = models.assign(log=_log10(models[measure]).where(models["train_error"] <= FITTED))
        values = plan.merge(logs[[*SHAPE, "log"]], how="left", on=SHAPE)
        wide = values.pivot(index=["depth", "width"], columns="shortcut", values="log").reset_index()
        wide["d"] = wide["none"] - wide["A"]
        numbers = t_interval(wide["d"].to_numpy())
        n = int(wide["d"].notna().sum())
        told = {"n": n, "n_left_out": len(wide) - n, "verdict": _sign(numbers[1], numbers[2])}
        rows.append(_row("4a", main, "digits-shapes", "log10 none / shortcuts", measure, *numbers, **told))
        deep = wide[wide["width"] == 1]
        rows.append(
            _slope_row("4b", main, "log10 none / shortcuts, per 10 layers", measure, deep["depth"] / 10, deep["d"])
        )
        wider = values[values["depth"] == values["depth"].min()]
        rows.append(
            _slope_row(
                "5a", main, "log10 sharpness, per doubling of width", measure, np.log2(wider["width"]), wider["log"],
                wider["shortcut"], agrees=-1,
            )
        )  # fmt: skip
        for shortcut, primary in (("none", main), ("A", False)):
            deeper = values[(values["width"] == 1) & (values["shortcut"] == shortcut)]
            statistic = f"log10 sharpness, per 10 layers, shortcuts {shortcut}"
            rows.append(_slope_row("5b", primary, statistic, measure, deeper["depth"] / 10, deeper["log"]))
    return rows


def _slope_row(
    claim: str,
    primary: bool,
    statistic: str,
    measure: str,
    x: pd.Series,
    y: pd.Series,
    groups: pd.Series | None = None,
    *,
    agrees: int = 1,
) -> Row:
    numbers = slope(x.to_numpy(), y.to_numpy(), np.zeros(len(x)) if groups is None else groups.to_numpy())
    n = int(np.isfinite(y).sum())
    told = {"n": n, "n_left_out": len(y) - n, "verdict": _sign(numbers[1], numbers[2], agrees=agrees)}
    return _row(claim, primary, "digits-shapes", statistic, measure, *numbers, **told)


def _together(claim: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """Join the primary rows of a claim: what they say of one voice, undecided ones apart."""
    said = {row["verdict"] for row in rows if row["claim"] == claim and row["primary"]} - {"undecided"}
    return said.pop() if len(said) == 1 else "undecided"
