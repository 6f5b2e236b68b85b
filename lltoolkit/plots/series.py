"""How several things in one picture are told apart: by colour, and without it by marker or dashes. Torch-free."""

from typing import Any

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
