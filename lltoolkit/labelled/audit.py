"""Measured errors: what cells that were filled turn out to be when they are computed. Torch-free."""

from collections.abc import Mapping

import numpy as np
from scipy.stats import binom

from lltoolkit.labelled.interpolate import Fields
from lltoolkit.labelled.plan import N_AUDIT, N_MORE
from lltoolkit.labelled.streams import stream


class Audits:
    """Draws fresh cells to judge by, and keeps the last verdict.

    Cells are taken in one random order, fixed by the seed, from those that are not computed: whatever the plan has
    decided by then, the next of them are a uniform draw from what is left, and a stricter plan draws the same ones.

    Every further audit draws 14 cells more. An audit passes by luck at most once in 20; with a second, a third and
    all further chances, each half as large as the one before, once in 10.

    Parameters
    ----------
    n_cells : int
        Cells of the grid.
    seed : int
        Of the random order.
    """

    def __init__(self, n_cells: int, seed: int):
        self._order = stream("audit", seed).permutation(n_cells)
        self.n_rounds = 0
        self.attrs: dict[str, str | int | float] = {}

    @property
    def size(self) -> int:
        """How many cells the next audit takes."""
        return N_AUDIT + N_MORE * self.n_rounds

    def draw(self, computed: np.ndarray) -> np.ndarray:
        """Give the next cells of the order that are not computed, at most `size`; `computed` is bool, by cell."""
        return self._order[~computed[self._order]][: self.size]

    def skip(self) -> None:
        """Note that every cell is computed and nothing is left to judge."""
        self.attrs = {"n_audit": 0, "n_audits": self.n_rounds}
        self.attrs |= {"audited_rms": 0.0, "audited_p95_upper": 0.0, "audited_max": 0.0}

    def excess(self, tolerance: float) -> float:
        """Give how many times the tolerance the bounds on the 95th percentiles of loss and accuracy are."""
        bounds = ("audited_p95_upper", "audited_accuracy_p95_upper")
        return max(float(self.attrs.get(name, 0.0)) for name in bounds) / tolerance

    def judge(self, fields: Fields, predicted: np.ndarray, computed: Mapping[str, np.ndarray]) -> np.ndarray:
        """Compare predictions with what was computed, and note the verdict in `attrs`.

        Parameters
        ----------
        fields : Fields
            Names and scales of the rows.
        predicted : ndarray
            Shape ``(n_fields, k)``, scaled.
        computed : mapping
            Metric -> ``(n_splits, k)``; where it isn't finite the error is infinite, since a number was predicted.

        Returns
        -------
        ndarray
            Shape ``(n_fields, k)``: absolute errors, scaled.
        """
        with np.errstate(invalid="ignore"):
            errors = np.nan_to_num(np.abs(predicted - fields.pack(computed)), nan=np.inf)
        self.n_rounds += 1
        self.attrs = {"n_audit": errors.shape[1], "n_audits": self.n_rounds} | _verdict(fields, errors)
        return errors


def p95_upper(errors: np.ndarray) -> float:
    """Bound the 95th percentile of a population by a uniform draw from it, at 95 % confidence and for any distribution.

    If 5 % of the population are larger than the bound, a draw of `n` has at most `r` of them with the probability
    ``P(Binomial(n, 0.05) <= r)``. For the largest `r` that leaves this below 5 %, the bound is the `r + 1`-th largest
    error: the largest of 59, the second of 93, the third of 124.

    Parameters
    ----------
    errors : ndarray
        Shape ``(n,)``, not negative.

    Returns
    -------
    float
        Infinite for fewer than 59, which bound nothing.

    References
    ----------
    Wilks (1941), Determination of sample sizes for setting tolerance limits.
    """
    allowed = np.flatnonzero(binom.cdf(np.arange(len(errors)), len(errors), 0.05) <= 0.05)
    return float(np.sort(errors)[::-1][allowed[-1]]) if len(allowed) else float("inf")


def _verdict(fields: Fields, errors: np.ndarray) -> dict[str, float]:
    """Tell the errors of each metric on its worst split; the loss's go without its name."""
    attrs = {}
    for metric in fields.metrics:
        rows = errors[fields.rows(metric)]
        audited = "audited" if metric == "loss" else f"audited_{metric}"
        attrs[f"{audited}_rms"] = float(np.sqrt(np.mean(rows**2, axis=1)).max())
        attrs[f"{audited}_p95_upper"] = max(p95_upper(row) for row in rows)
        attrs[f"{audited}_max"] = float(rows.max())
    return attrs


def worst(fields: Fields, scaled: np.ndarray) -> np.ndarray:
    """Give the largest of the rows that a tolerance is held on: loss and accuracy, on every split; shape ``(k,)``."""
    return scaled[fields.rows("loss", "accuracy")].max(axis=0)
