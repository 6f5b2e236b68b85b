"""What tells series apart, with and without colour, and labels and ticks that fit into small panels. Torch-free."""

import re
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from lltoolkit.plots.scale import number

if TYPE_CHECKING:
    from matplotlib.axis import Axis

# Okabe and Ito (2008), Color Universal Design, without the yellow, which is lost on white; black last.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (9, 2)))


def color_of(place: int) -> str:
    """Return the colour of the series with this number, from 0; after the seventh they begin again."""
    return COLORS[place % len(COLORS)]


def marker_of(place: int) -> str:
    """Return the marker of a series; colour and marker together repeat only after 63 series."""
    return MARKERS[place % len(MARKERS)]


def dashes_of(place: int) -> Any:
    """Return the line style of a series; colour and dashes together repeat only after 35 series."""
    return DASHES[place % len(DASHES)]


def wrap_label(text: str, width: int = 28) -> str:
    """Break a label into the fewest lines, about equally long.

    Parameters
    ----------
    text : str
        Of words; a formula between two ``$`` is one.
    width : int
        Letters in a line, at least 1; a longer word stays whole.

    Returns
    -------
    str
        With newlines.

    Examples
    --------
    >>> wrap_label("worst case in an adaptive ball", 20).splitlines()
    ['worst case in an', 'adaptive ball']
    """
    # Torn in two, a formula would be printed as its source.
    text = re.sub(r"\$[^$]*\$", lambda formula: formula[0].replace(" ", "\0").replace("-", "\1"), text)
    n_lines = len(wrap(text, width, break_long_words=False))
    narrow = next(each for each in range(1, width + 1) if len(wrap(text, each, break_long_words=False)) <= n_lines)
    return "\n".join(wrap(text, narrow, break_long_words=False)).replace("\0", " ").replace("\1", "-")


def set_log_ticks(axis: "Axis", decades: float) -> None:
    """Label about three ticks of a log axis: matplotlib labels all of 2 to 9 where one decade is within the limits.

    Parameters
    ----------
    axis : Axis
        On a log scale.
    decades : float
        How many the limits span.
    """
    axis.set_minor_formatter(NullFormatter())
    if decades < 2:
        subs = (1, 2, 5) if decades < 1.2 else (1, 3)
        axis.set_major_locator(LogLocator(subs=subs) if decades > 0.8 else MaxNLocator(3, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
