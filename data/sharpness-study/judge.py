"""Judge the paper's claims by the rules of PROTOCOL.md, from the tables of the study: numbers, intervals, verdicts."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

import lltoolkit as ll

SHARPNESS = "filter_curvature"
COUNTERPARTS = ("lambda_max", "trace", "weight_norm")
TARGETS = ("test_error", "error_gap", "test_loss", "loss_gap")
FITTED = 0.05  # training error
NOTABLE = 0.2  # tau
FLOOR = 1e-6  # nat, of a rise along a line
LEAST = 3  # blocks or shapes behind an interval
PAIR = ["optimizer", "lr", "weight_decay", "seed"]
BLOCK = ["optimizer", "lr"]
GRIDS = ("digits-grid", "cifar10-grid")
TABLES = ("digits-grid", "digits-equal-loss", "digits-vgg", "digits-shapes", "cifar10-grid")
Row = dict[str, Any]


def judge(work: Path, *, echo: Callable[[str], object]) -> list[Row]:
    """Write ``verdicts.json``, ``correlations.csv`` and the figures, from what has been measured.

    Parameters
    ----------
    work : Path
        Folder with the tables, and ``lines/``.
    echo : callable
        Takes lines about the outcome.

    Returns
    -------
    list of dict
        The rows: ``claim``, ``primary``, ``data``, ``statistic``, ``measure``, ``estimate``, ``low``, ``high``, ``n``,
        ``n_left_out``, ``verdict``.
    """
    tables = {name: ll.open_result(path) for name in TABLES if (path := work / f"{name}.sharpness.nc").exists()}
    digits = [tables[name] for name in ("digits-grid", "digits-vgg", "digits-shapes") if name in tables]
    if len(digits) > 1:
        tables["digits-all"] = xr.concat(digits, dim="model", combine_attrs="drop_conflicts")
    lines = {name: _read_lines(work / "lines" / f"{name}.json") for name in (*GRIDS, "digits-vgg")}
    rows: list[Row] = []
    correlations = []
    for name, table in tables.items():
        if name != "digits-vgg":  # four models
            rows += _correlations(name, table, work, correlations)
    for name in GRIDS:
        if name in tables:
            rows += _flips(name, tables[name], lines[name])
    rows += _pair_of_the_paper(tables.get("digits-vgg"), lines["digits-vgg"])
    for name in (*GRIDS, "digits-equal-loss"):
        if name in tables:
            rows += _batches(name, tables[name])
    if "digits-shapes" in tables:
        rows += _shapes(frame(tables["digits-shapes"]))
    verdicts = {claim: _together(claim, rows) for claim in ("1", "2", "3", "4a", "4b", "5a", "5b")}
    content = {"verdicts": verdicts, "rows": rows}
    (work / "verdicts.json").write_text(json.dumps(_plain(content), indent=1) + "\n")
    if correlations:
        pd.concat(correlations).to_csv(work / "correlations.csv", index=False, float_format="%.6g")
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


def _correlations(name: str, table: xr.Dataset, work: Path, kept: list[pd.DataFrame]) -> list[Row]:
    rows = []
    for models, subset in (("fitted models", _fitted(table)), ("all models", table)):
        if subset.sizes["model"] < 2:
            continue
        found = ll.rank_correlation(subset, against=TARGETS, group="optimizer")
        kept.append(found.to_dataframe().reset_index().assign(data=name, models=models))
        if models == "fitted models":
            figure = ll.plot_sharpness(subset, against="test_error", group="optimizer", correlation=found)
            figure.savefig(work / f"{name}.png")
        left = table.sizes["model"] - subset.sizes["model"]
        for measure in (SHARPNESS, *COUNTERPARTS):
            for target in TARGETS:
                one = found.sel(measure=measure, against=target)
                told = {key: one[key].item() for key in ("tau_test_low", "tau_test_high", "n_models", "n_clusters")}
                main = (name, models, measure, target) == ("cifar10-grid", "fitted models", SHARPNESS, "test_error")
                numbers = tuple(one[key].item() for key in ("tau", "tau_low", "tau_high"))
                verdict = _of_tau(*numbers, told["tau_test_low"], told["tau_test_high"], told["n_clusters"])
                told |= {"n": told.pop("n_models"), "n_left_out": left, "models": models, "verdict": verdict}
                rows.append(_row("1", main, name, f"tau with {target}", measure, *numbers, **told))
                partial = tuple(one[f"tau_partial{end}"].item() for end in ("", "_low", "_high"))
                verdict = _of_tau(*partial, partial[1], partial[2], told["n_clusters"])
                told |= {"verdict": verdict, "tau_test_low": math.nan, "tau_test_high": math.nan}
                statistic = f"tau with {target} given train_loss"
                rows.append(_row("1", False, name, statistic, measure, *partial, **told))
    return rows


def _of_tau(tau: float, low: float, high: float, test_low: float, test_high: float, n_clusters: int) -> str:
    if n_clusters < 5:
        return "undecided"
    if tau >= NOTABLE and low > 0 and test_low > 0:
        return "agrees"
    return "disagrees" if high < NOTABLE and test_high < NOTABLE else "undecided"


def _pairs(table: xr.Dataset, measure: str, *, fitted: bool) -> tuple[pd.DataFrame, int]:
    """Return the pairs of small and large batch with d = log10(large / small), and how many were left out."""
    models = frame(table)
    n_pairs = len(models[PAIR].drop_duplicates())
    if fitted:
        models = models[models["train_error"] <= FITTED]
    values = models.assign(log=_log10(models[measure])).set_index(PAIR)
    ends = [values.loc[values["batch"] == batch, "log"] for batch in ("large", "small")]
    pairs = (ends[0] - ends[1]).dropna().rename("d").reset_index()
    return pairs, n_pairs - len(pairs)


def _log10(values: Iterable[float]) -> pd.Series:
    values = pd.Series(values, dtype=float)
    return np.log10(values.where(values > 0))


def _block_means(pairs: pd.DataFrame) -> tuple[tuple[float, float, float], int]:
    means = pairs.groupby(BLOCK)["d"].mean()
    return t_interval(means.to_numpy()), len(means)


def _read_lines(path: Path) -> pd.DataFrame:
    """Read the pairs with d = log10(rise of the large batch / of the small batch), NaN where a rise is."""
    if not path.exists():
        return pd.DataFrame(columns=[*PAIR, "d"])
    pairs = pd.DataFrame(json.loads(path.read_text()))
    small, large = (pairs[f"rise_{batch}"].astype(float).clip(lower=FLOOR) for batch in ("small", "large"))
    return pairs.assign(d=np.log10(large) - np.log10(small))


def _flips(name: str, table: xr.Dataset, lines: pd.DataFrame) -> list[Row]:
    """Claim 2: whether d changes its sign with weight decay."""
    fitted = set(map(tuple, _pairs(table, "weight_norm", fitted=True)[0][PAIR].to_numpy().tolist()))
    inside = lines[[tuple(pair) in fitted for pair in lines[PAIR].to_numpy().tolist()]]
    kept = inside.dropna(subset="d")
    sources = {"line": (kept, len(lines) - len(kept))}
    sources |= {measure: _pairs(table, measure, fitted=True) for measure in (SHARPNESS, *COUNTERPARTS)}
    rows = []
    for measure, (pairs, left) in sources.items():
        decays = sorted(frame(table)["weight_decay"].unique())
        by_decay = {decay: _block_means(pairs[pairs["weight_decay"] == decay]) for decay in decays}
        (without, n_without), (with_decay, n_with) = by_decay[decays[0]], by_decay[decays[-1]]
        if without[1] > 0 and with_decay[2] < 0:
            verdict = "agrees"
        elif (without[1] > 0 and with_decay[1] > 0) or (without[2] < 0 and with_decay[2] < 0):
            verdict = "disagrees"
        else:
            verdict = "undecided"
        told = {"n_left_out": left, "verdict": verdict}
        for decay, numbers, n in ((0, without, n_without), (5e-4, with_decay, n_with)):
            statistic = f"log10 large / small, weight decay {decay:g}"
            rows.append(_row("2", measure == "line", name, statistic, measure, *numbers, n=n, **told))
    return rows


def _pair_of_the_paper(table: xr.Dataset | None, lines: pd.DataFrame) -> list[Row]:
    sources: dict[str, pd.DataFrame] = {"line": lines.dropna(subset="d")}
    if table is not None:
        names = (SHARPNESS, *COUNTERPARTS, "test_error")
        sources |= {name: _pairs(table, name, fitted=False)[0] for name in names}
    return [
        _row(
            "2",
            False,
            "digits-vgg",
            f"log10 large / small, weight decay {pair['weight_decay']:g}",
            measure,
            *(pair["d"], math.nan, math.nan),
            n=1,
            n_left_out=0,
            verdict="undecided",
        )
        for measure, pairs in sources.items()
        for pair in pairs.to_dict("records")
    ]


def _batches(name: str, table: xr.Dataset) -> list[Row]:
    """Claim 3: whether the large batch is sharper."""
    rows = []
    for chosen in ("fitted models", "all models"):
        for measure in (SHARPNESS, *COUNTERPARTS, "train_loss", "test_error"):
            pairs, left = _pairs(table, measure, fitted=chosen == "fitted models")
            for decay in (None, *sorted(pairs["weight_decay"].unique())):
                numbers, n = _block_means(pairs if decay is None else pairs[pairs["weight_decay"] == decay])
                statistic = "log10 large / small" + ("" if decay is None else f", weight decay {decay:g}")
                main = name in GRIDS and measure == SHARPNESS and decay is None and chosen == "fitted models"
                verdict = _sign(numbers[1], numbers[2])
                told = {"n": n, "n_left_out": left, "models": chosen, "verdict": verdict}
                rows.append(_row("3", main, name, statistic, measure, *numbers, **told))
    return rows


def _shapes(models: pd.DataFrame) -> list[Row]:
    """Claims 4 and 5: shortcuts, width, depth."""
    models = models.assign(fitted=models["train_error"] <= FITTED)
    rows = []
    for measure in (SHARPNESS, *COUNTERPARTS):
        main = measure == SHARPNESS
        values = models.assign(log=_log10(models[measure]).where(models["fitted"]))
        wide = values.pivot_table(index=["depth", "width"], columns="shortcut", values="log", dropna=False)
        wide = wide.reindex(columns=["A", "none"]).dropna().reset_index()
        wide["d"] = wide["none"] - wide["A"]
        n_shapes = len(models.groupby(["depth", "width"]))
        numbers = t_interval(wide["d"].to_numpy())
        told = {"n": len(wide), "n_left_out": n_shapes - len(wide)}
        verdict = _sign(numbers[1], numbers[2])
        rows.append(
            _row("4a", main, "digits-shapes", "log10 none / shortcuts", measure, *numbers, **told, verdict=verdict)
        )
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
