"""Where to look from, and where things appear in the picture. NumPy only."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from lltoolkit.errors import require_choice

Camera: TypeAlias = Literal["default", "top", "front", "side"] | tuple[float, float]

# Elevation and azimuth in degrees. From the top alpha runs to the right and beta upwards, as in plot_contour.
_NAMED = {"top": (90.0, -90.0), "front": (22.0, -90.0), "side": (22.0, 0.0)}
CAMERAS = ("default", *_NAMED)

_VIEW_ANGLE = 24.0  # degrees; small, so that parallel edges stay nearly parallel
_FLAT_ANGLE = 1.0  # from straight above or below: nearly parallel rays, so that the surface lies over its numbers
_FILL = 0.97  # of the window


@dataclass(frozen=True)
class View:
    """A perspective view with z up.

    Attributes
    ----------
    position, focus : ndarray
        Shape ``(3,)``: where the camera is and what it looks at.
    angle : float
        Degrees that it sees from bottom to top.
    """

    position: np.ndarray
    focus: np.ndarray
    angle: float = _VIEW_ANGLE

    def project(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return where points appear in a picture.

        Parameters
        ----------
        points : ndarray
            Shape ``(k, 3)``.
        size : (int, int)
            Width and height in pixels.

        Returns
        -------
        ndarray
            Shape ``(k, 2)``: pixels to the right of and below the upper left one.
        """
        away, right, up = self._axes()
        seen = np.asarray(points) - self.position
        scale = size[1] / 2 / np.tan(np.radians(self.angle / 2)) / -(seen @ away)
        return np.stack([size[0] / 2 + scale * (seen @ right), size[1] / 2 - scale * (seen @ up)], axis=-1) - 0.5

    def _axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return unit vectors towards the camera, to its right and up."""
        away = (self.position - self.focus) / np.linalg.norm(self.position - self.focus)
        right = np.cross((0.0, 0.0, 1.0), away)
        right /= np.linalg.norm(right)
        return away, right, np.cross(away, right)


def pick_camera(camera: Camera) -> tuple[float, float] | None:
    """Return the elevation and the azimuth of a camera.

    Parameters
    ----------
    camera : str or (float, float)
        ``"default"``, ``"top"``, ``"front"``, ``"side"``, or degrees.

    Returns
    -------
    (float, float) or None
        None for the default one, which depends on what is shown.

    Raises
    ------
    ValueError
        If there is no such camera.

    Examples
    --------
    >>> pick_camera("top"), pick_camera((54, -60))
    ((90.0, -90.0), (54.0, -60.0))
    """
    if isinstance(camera, str):
        require_choice("camera", camera, CAMERAS)
        return _NAMED.get(camera)
    try:
        elevation, azimuth = map(float, camera)
        if not (abs(elevation) <= 90 and np.isfinite(azimuth)):
            raise ValueError
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"camera={camera!r}: give one of {', '.join(map(repr, CAMERAS))}, or (elevation, azimuth) in degrees with "
            "an elevation of -90 to 90, for example (54, -60)."
        ) from error
    return elevation, azimuth


def fit_view(points: np.ndarray, elevation: float, azimuth: float, size: tuple[int, int], top: float = 0.0) -> View:
    """Find the nearest view in a direction that shows all points, in the middle of the picture.

    Parameters
    ----------
    points : ndarray
        Shape ``(k, 3)``.
    elevation, azimuth : float
        Of the camera as seen from the points, in degrees.
    size : (int, int)
        Width and height in pixels.
    top : float
        Part of the height that is kept free for a title.

    Returns
    -------
    View
        In which the points fill the picture, up to a small margin.

    Examples
    --------
    >>> corners = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (0, 1)])
    >>> seen = fit_view(corners, 40, -60, (200, 100)).project(corners, (200, 100))
    >>> bool((seen >= 0).all() and (seen <= (200, 100)).all())
    True
    """
    tilt, turn = np.radians((min(max(elevation, -89.0), 89.0), azimuth))  # straight down there is no up
    away = np.array([np.cos(tilt) * np.cos(turn), np.cos(tilt) * np.sin(turn), np.sin(tilt)])
    angle = _VIEW_ANGLE if abs(elevation) < 80 else _FLAT_ANGLE
    focus, distance = points.mean(axis=0), 96 / angle * np.ptp(points, axis=0).max()
    for _ in range(30):  # each round halves what is left, and more
        view = View(focus + distance * away, focus, angle)
        seen = (view.project(points, size) + 0.5) * 2 / size - 1
        low, high = seen.min(axis=0), seen.max(axis=0)
        low[1] = high[1] - (high[1] - low[1]) / (1 - top)
        _, right, up = view._axes()
        reach = distance * np.tan(np.radians(angle / 2))
        middle = (low + high) / 2
        focus = focus + reach * (middle[0] * size[0] / size[1] * right - middle[1] * up)
        distance *= float((high - low).max() / 2 / _FILL)
    return View(focus + distance * away, focus, angle)


def azimuth_behind(start: np.ndarray, end: np.ndarray) -> float:
    """Return an azimuth in degrees from which a path from `start` to `end` comes down the far wall.

    Returns
    -------
    float
        For `fit_view`; a little to the side, so that the path is not seen end-on.

    Examples
    --------
    >>> azimuth_behind(np.array([0.0, 1.0]), np.array([0.0, 0.0]))
    235.0
    """
    return float(np.degrees(np.arctan2(start[1] - end[1], start[0] - end[0]))) + 180.0 - 35.0
