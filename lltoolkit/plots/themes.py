"""What a scene looks like apart from its data: on white for print, on dark for talks."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from lltoolkit.errors import require_choice

ThemeName: TypeAlias = Literal["light", "dark"]


@dataclass(frozen=True)
class Theme:
    """Colours of a scene, as matplotlib and VTK both read them.

    Attributes
    ----------
    background, text, quiet : str
        Of the picture, of numbers and names, and of notes and ticks.
    edge : str
        The border of the floor.
    line : str
        Iso-lines on the surface.
    level : str
        A level that is marked: far from every colour of the maps.
    start, end : str
        The first and the last point of a trajectory.
    """

    background: str
    text: str
    quiet: str
    edge: str
    line: str
    level: str
    start: str
    end: str


THEMES = {
    "light": Theme("#ffffff", "#000000", "#666666", "#8c8c8c", "#000000", "#e5007d", "#ffffff", "#ffe13a"),
    "dark": Theme("#14171c", "#f2f2f2", "#a3abb5", "#6c7580", "#000000", "#ff5fb4", "#ffffff", "#ffe13a"),
}


def pick_theme(name: str) -> Theme:
    """Find a theme by its name.

    Returns
    -------
    Theme
        Its colours.

    Raises
    ------
    ValueError
        If there is none of this name.
    """
    require_choice("theme", name, THEMES)
    return THEMES[name]
