"""Where the camera of a film stands in each picture: around a scene, or along a trajectory. NumPy only."""

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import gaussian_filter1d

from lltoolkit.plots.camera import View
from lltoolkit.plots.frame import Frame
from lltoolkit.plots.relief import Relief
from lltoolkit.plots.tracks import Track

_TILT = 42.0  # degrees above the horizon, from which a flight looks down on the path
_DISTANCE = 2.6  # of the camera from what it follows, in scene units
_CLEARANCE = 0.25  # above the surface


def turn_around(points: np.ndarray, n_steps: int = 24) -> np.ndarray:
    """Return points as they come by in one turn about the vertical, shape ``(k, 3)``.

    Parameters
    ----------
    points : ndarray
        Shape ``(m, 3)``.
    n_steps : int
        Of the turn.

    Returns
    -------
    ndarray
        What one camera sees in all pictures together.
    """
    radius, height = np.hypot(points[:, 0], points[:, 1]), points[:, 2]
    order = np.lexsort((radius, np.round(height, 2)))
    # At each height the widest point decides.
    last = np.r_[np.diff(np.round(height[order], 2)) > 0, True]
    angles = 2 * np.pi * np.arange(n_steps) / n_steps
    widest = order[last]
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    flat = radius[widest, None, None] * circle[None]
    up = np.broadcast_to(height[widest, None, None], (*flat.shape[:2], 1))
    return np.concatenate([flat, up], axis=-1).reshape(-1, 3)


def turntable(view: View, n_pictures: int) -> Iterator[View]:
    """Turn a view once about the vertical through the middle of the scene.

    Parameters
    ----------
    view : View
        The first picture's.
    n_pictures : int
        Of the whole turn; the next one would be the first again.

    Yields
    ------
    View
        One for each picture.
    """
    for angle in 2 * np.pi * np.arange(n_pictures) / n_pictures:
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        yield View(turn @ view.position, turn @ view.focus, view.angle)


def fly_along(track: Track, frame: Frame, relief: Relief, n_pictures: int) -> Iterator[tuple[View, np.ndarray]]:
    """Follow a trajectory from behind and above, at an even pace along its way.

    Parameters
    ----------
    track : Track
        What is followed: its longest piece.
    frame, relief : Frame, Relief
        The surface: the camera stays above it.
    n_pictures : int
        At least 2.

    Yields
    ------
    (View, ndarray)
        Of each picture, and the coordinates of the place that is followed, shape ``(2,)``.
    """
    piece = max(track.pieces, key=len)
    points = frame.place(*piece.T)
    way = np.r_[0.0, np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()]
    shots = np.linspace(0, way[-1], n_pictures)
    place = np.stack([np.interp(shots, way, column) for column in points.T], axis=-1)
    where = np.stack([np.interp(shots, way, column) for column in piece[:, :2].T], axis=-1)
    # What is looked at moves smoothly where the path jumps to and fro, and starts a little ahead.
    focus = gaussian_filter1d(place, max(1.0, n_pictures / 12), axis=0, mode="nearest")
    heading = gaussian_filter1d(np.gradient(focus[:, :2], axis=0), max(1.0, n_pictures / 8), axis=0, mode="nearest")
    whole = points[-1, :2] - points[0, :2]
    # A path that turns back on itself keeps the direction of the whole: the picture must not spin.
    heading += 0.5 * np.linalg.norm(heading, axis=1).mean() * whole / (np.linalg.norm(whole) + 1e-12)
    heading /= np.linalg.norm(heading, axis=1, keepdims=True) + 1e-12
    tilt = np.radians(_TILT)
    eye = focus + _DISTANCE * np.column_stack([-np.cos(tilt) * heading, np.full(n_pictures, np.sin(tilt))])
    eye[:, 2] = gaussian_filter1d(np.maximum(eye[:, 2], _ground(eye, frame, relief) + _CLEARANCE), 2.0, mode="nearest")
    for position, aim, at in zip(eye, focus, where, strict=True):
        yield View(position, aim, 34.0), at


def _ground(eye: np.ndarray, frame: Frame, relief: Relief) -> np.ndarray:
    """Return the height of the surface below points, in scene units; -inf beside it."""
    first, second, _ = frame.coordinates(eye)
    inside = (first >= frame.first[0]) & (first <= frame.first[1])
    inside &= (second >= frame.second[0]) & (second <= frame.second[1])
    height = np.minimum(relief.spline.ev(first, second), frame.heights(frame.high))
    return np.where(inside, frame.place(first, second, height)[:, 2], -np.inf)
