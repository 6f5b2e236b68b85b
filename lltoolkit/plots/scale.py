"""Levels and colour limits: chosen once, for one field or for several that share them. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from lltoolkit.errors import require_choice
from lltoolkit.plots.field import Field

if TYPE_CHECKING:
    from matplotlib.colors import Normalize

Levels: TypeAlias = Literal["auto", "log", "linear", "paper"] | ArrayLike
LEVELS = ("auto", "log", "linear", "paper")

# Leading digits of a log scale's levels, coarse to fine; the last only where 1-2-5 would leave too few.
_DIGITS = (("1",), ("1", "2", "5"), ("1", "1.5", "2", "3", "5", "7"))
_DECADES = 8  # a log scale does not reach further below its top; an exact zero would ask for infinitely many


@dataclass(frozen=True)
class Scale:
    """What values are told apart in a picture, and what is said about the others.

    Attributes
    ----------
    levels : ndarray
        Shape ``(n_levels,)``, ascending; the colours run from the first to the last.
    log : bool
        Whether colour and height follow the logarithm.
    lowest, highest : float
        The finite extremes of what is shown; NaN where there is nothing.
    note : str
        What a label must add: clipping, or that a log scale was not possible. Else empty.
    """

    levels: np.ndarray
    log: bool
    lowest: float
    highest: float
    note: str = ""

    @property
    def low(self) -> float:
        """The value of the first colour."""
        return float(self.levels[0])

    @property
    def high(self) -> float:
        """The value of the last colour."""
        return float(self.levels[-1])

    @property
    def constant(self) -> bool:
        """Whether all values are one and the same, so that no line can be drawn."""
        return self.lowest == self.highest

    @property
    def extend(self) -> Literal["neither", "min", "max", "both"]:
        """On which sides values lie beyond the colours, in the words of a colour bar."""
        under, over = self.lowest < self.low, self.highest > self.high
        return "both" if under and over else "min" if under else "max" if over else "neither"

    def norm(self) -> "Normalize":
        """Return a fresh matplotlib norm from the first level to the last."""
        from matplotlib.colors import LogNorm, Normalize

        return (LogNorm if self.log else Normalize)(vmin=self.low, vmax=self.high)

    def bands(self) -> "Normalize":
        """Return a fresh matplotlib norm with one colour between each two levels."""
        from matplotlib.colors import BoundaryNorm

        return BoundaryNorm(self.levels, ncolors=256, extend=self.extend)

    def labelled(self, label: str) -> str:
        r"""Add what must be said to a label.

        Returns
        -------
        str
            With each note on a line of its own.

        Examples
        --------
        >>> Scale(np.array([1.0, 10.0]), True, 1.0, 50.0, "clipped at 10 (max 50)").labelled("train loss [nat]")
        'train loss [nat]\nclipped at 10 (max 50)'
        """
        return "\n".join(filter(None, [label, *self.note.split("; ")]))

    def major(self) -> np.ndarray:
        """Choose the levels that carry a number: whole decades, or about six of them.

        Returns
        -------
        ndarray
            Shape ``(k,)``, a subset of the levels.
        """
        if self.log:
            for digits, enough in ((_DIGITS[0], 4), (_DIGITS[1], 3)):
                chosen = self.levels[np.isin(self.levels, _round_numbers(digits, self.low, self.high))]
                if len(chosen) >= enough:
                    return chosen
        elif self.low > 0 and self.high > 20 * self.low:
            # Equal steps of a steep loss crowd together; numbers at each doubling still tell them apart.
            chosen = [self.levels[0]]
            for level in self.levels:
                if level >= 2 * chosen[-1]:
                    chosen.append(level)
            return np.array(chosen)
        stride = max(1, round(len(self.levels) / 6))
        step = stride * (self.levels[1] - self.levels[0])
        # From the first that is a multiple of the step, so that 0, 1 and 10 carry a number.
        offset = int(np.argmin(np.abs(self.levels[:stride] / step - np.round(self.levels[:stride] / step))))
        return self.levels[offset::stride]

    def write(self, value: float) -> str:
        """Write a level's number: whole decades all as powers of ten where some of them must be.

        Returns
        -------
        str
            For a label.

        Examples
        --------
        >>> Scale(np.array([1e-4, 1e-3, 0.01, 0.1, 1.0]), True, 1e-4, 1.0).write(0.1), number(0.1)
        ('$10^{-1}$', '0.1')
        """
        if self.log and value > 0 and (self.low < 1e-3 or self.high >= 1e4):
            exponent = np.log10(value)
            if np.isclose(exponent, np.round(exponent), rtol=0, atol=1e-9):
                return f"$10^{{{int(np.round(exponent))}}}$"
        extra = next((n for n in range(9) if len({number(each, n) for each in self.levels}) == len(self.levels)), 9)
        return number(value, extra)  # levels that lie close together take the digits that tell them apart


def choose_scale(
    fields: Sequence[Field], levels: Levels = "auto", clip: float | None = None, n_levels: int = 12
) -> Scale:
    """Choose levels and colours for one field, or the same ones for several.

    Parameters
    ----------
    fields : sequence of Field
        What will be drawn on this scale.
    levels : "auto", "log", "linear", "paper" or array of float
        ``"log"``: 1, 2, 5, 10, ... from the lowest value to a robust high end; finer round numbers where all values
        lie close together, whole decades where there would be more than twice `n_levels`. ``"linear"``: equidistant
        round numbers; ``"paper"``: 0.1 to 9.6 in steps of 0.5, after the code of Li et al. (2018); ``"auto"``: log
        for a loss, linear for the rest. An array is taken as it is.
    clip : float, optional
        Highest value to tell apart, in units of the variable; ``inf`` for the highest there is. By default the
        highest, unless a few cells of a loss reach far beyond the rest (then the 95th percentile).
    n_levels : int
        About how many levels.

    Returns
    -------
    Scale
        Its note tells of values beyond the colours.

    Raises
    ------
    ValueError
        If `levels` is unknown or not ascending, or `clip` not above the lowest value.
    """
    values = np.concatenate([field.finite for field in fields]) if fields else np.empty(0)
    if isinstance(levels, str):
        require_choice("levels", levels, LEVELS)
        kind = ("log" if all(field.is_loss for field in fields) else "linear") if levels == "auto" else levels
    else:
        kind, given = "given", _checked_levels(levels)
    if clip is not None and not clip > (values.min() if values.size else -np.inf):
        raise ValueError(
            f"clip={clip!r} leaves nothing to draw: the values run from {values.min():.6g} to {values.max():.6g}. "
            "Give a clip above the lowest, or None."
        )
    if not values.size:
        return Scale(np.array([0.1, 1.0]), kind == "log", np.nan, np.nan)
    lowest, highest = float(values.min()), float(values.max())
    if clip is None and not all(field.is_loss for field in fields):
        clip = np.inf  # the minimizer of an accuracy is among its few high cells: only a loss has a tail to cut

    if kind == "given":
        # A log colour scale where the levels themselves span decades.
        return _noted(given, bool(given[0] > 0 and given[-1] >= 100 * given[0]), lowest, highest, [])
    if kind == "paper":
        return _noted(np.arange(0.1, 10, 0.5), False, lowest, highest, [])
    positive = values[values > 0]
    if kind == "log" and 2 * positive.size > values.size and (clip is None or clip > positive.min()):
        given_top = clip is not None and np.isfinite(clip)
        cut = np.log10(clip) if given_top else clip
        top = float(clip if given_top and clip <= positive.max() else 10.0 ** _robust_top(np.log10(positive), cut))
        bottom = max(positive.min(), top * 10.0**-_DECADES)
        return _noted(_log_levels(bottom, top, n_levels, clip), True, lowest, highest, [])
    notes = [f"linear scale: {1 - positive.size / values.size:.0%} of cells not above 0"] if kind == "log" else []
    return _noted(_linear_levels(lowest, _robust_top(values, clip), n_levels, clip), False, lowest, highest, notes)


def _checked_levels(levels: ArrayLike) -> np.ndarray:
    given = np.asarray(levels, dtype=np.float64)
    if given.ndim != 1 or len(given) < 2 or not np.isfinite(given).all() or not (np.diff(given) > 0).all():
        raise ValueError(
            f"levels={levels!r} is not an ascending row of two or more finite numbers. Give for example "
            "numpy.geomspace(0.1, 100, 10), or one of 'auto', 'log', 'linear', 'paper'."
        )
    return given


def _robust_top(values: np.ndarray, clip: float | None) -> float:
    """Return the highest value that deserves its own colour; `values` are on the scale that is drawn."""
    low, bulk, top = np.quantile(values, [0, 0.95, 1])
    if clip is not None:
        return float(min(clip, top))
    # The tail is cut where a twentieth of the cells would take more than a third of the colours.
    return float(top if top - low <= 1.5 * (bulk - low) or bulk == low else bulk)


def _log_levels(bottom: float, top: float, n_levels: int, clip: float | None) -> np.ndarray:
    """Return round levels from `bottom` to `top`; an explicit clip is the last of them to the digit."""
    if top <= bottom * (1 + 1e-9):
        return bottom * np.array([0.9, 1.1])
    decades, usual, fine = (_round_numbers(digits, bottom, top) for digits in _DIGITS)
    if 2 * len(usual) < n_levels:
        # Two numbers beside each other differ little here: equal steps are as good, and rounder.
        levels = fine if 2 * len(fine) >= n_levels else _linear_levels(bottom, top, n_levels, None)
        levels = levels[levels > 0]
    else:
        levels = usual if len(usual) <= 2.2 * n_levels else decades
    return _ended(levels, clip) if clip is not None and np.isclose(top, clip, rtol=1e-12) else levels


def _round_numbers(digits: Sequence[str], bottom: float, top: float) -> np.ndarray:
    """Return the numbers that begin with one of `digits`, from `bottom` or just below to `top` or just above."""
    decades = range(int(np.floor(np.log10(bottom))) - 1, int(np.ceil(np.log10(top))) + 2)
    # Read from text, so that 0.2 is what anybody else writes as 0.2.
    numbers = np.array([float(f"{digit}e{decade}") for decade in decades for digit in digits])
    first = np.searchsorted(numbers, bottom * (1 + 1e-9), side="right") - 1
    return numbers[first : np.searchsorted(numbers, top * (1 - 1e-9)) + 1]


def _linear_levels(bottom: float, top: float, n_levels: int, clip: float | None) -> np.ndarray:
    from matplotlib.ticker import MaxNLocator

    if top - bottom <= 1e-12 * max(abs(top), abs(bottom)):
        width = 0.05 * (abs(top) or 1.0)
        return np.array([top - width, top + width])
    levels = MaxNLocator(nbins=n_levels, steps=[1, 2, 2.5, 5, 10]).tick_values(bottom, top)
    return _ended(levels, clip) if clip is not None and np.isfinite(clip) and top == clip else levels


def _ended(levels: np.ndarray, clip: float) -> np.ndarray:
    """Make an explicit clip the last level, without one just below it."""
    kept = levels[levels < clip]
    if len(kept) > 2 and clip - kept[-1] < 0.4 * (kept[-1] - kept[-2]):
        kept = kept[:-1]
    return np.append(kept, clip)


def _noted(levels: np.ndarray, log: bool, lowest: float, highest: float, notes: list[str]) -> Scale:
    scale = Scale(levels, log, lowest, highest)
    if highest > scale.high + 1e-9 * abs(scale.high):
        notes = [*notes, f"clipped at {number(scale.high)} (max {number(highest)})"]
    if lowest < scale.low - 1e-9 * abs(scale.low):
        notes = [*notes, f"floor {number(scale.low)} (min {number(lowest)})"]
    return Scale(levels, log, lowest, highest, "; ".join(notes))


def number(value: float, extra: int = 0) -> str:
    r"""Write a number for a label, as mathtext where it is far from 1.

    Parameters
    ----------
    value : float
        The number.
    extra : int
        Digits beyond the usual.

    Returns
    -------
    str
        Three digits, or a power of ten with a factor of two.

    Examples
    --------
    >>> number(0.25), number(10.0), number(1.5e7), number(1e-5)
    ('0.25', '10', '$1.5\\times10^{7}$', '$10^{-5}$')
    """
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.{3 + extra}g}" if abs(value) < 1000 else f"{value:.{extra}f}"
    mantissa, exponent = f"{value:.{1 + extra}e}".split("e")
    mantissa, power = mantissa.rstrip("0").rstrip("."), f"10^{{{int(exponent)}}}"
    return f"${power}$" if mantissa == "1" else f"${mantissa}\\times{power}$"
