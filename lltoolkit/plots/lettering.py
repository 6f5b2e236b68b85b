"""Numbers and names as flat meshes: they lie in a scene, and go with it into any file. Runs in the render thread."""

from collections.abc import Sequence

import numpy as np
import pyvista as pv
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from vtkmodules.vtkFiltersGeneral import vtkContourTriangulator


def letter(text: str, at: np.ndarray, right: np.ndarray, height: float) -> pv.PolyData:
    """Lay a text on the floor.

    Parameters
    ----------
    text : str
        With matplotlib's mathtext.
    at : ndarray
        Shape ``(3,)``: where its middle lies.
    right : ndarray
        Shape ``(2,)``: unit vector, along which it is read.
    height : float
        Of a digit, in scene units.

    Returns
    -------
    PolyData
        Triangles.
    """
    # Larger than needed: matplotlib rounds curves to pixels of its own.
    path = TextPath((0.0, 0.0), text, size=100, prop=FontProperties(family="STIXGeneral", math_fontfamily="stix"))
    loops = [loop[:-1] for loop in path.to_polygons(closed_only=True) if len(loop) > 3]
    points = np.concatenate(loops)
    starts = np.cumsum([0, *(len(loop) for loop in loops)])
    lines = [np.r_[len(loop) + 1, start : start + len(loop), start] for loop, start in zip(loops, starts, strict=False)]
    outline = pv.PolyData(np.column_stack([points, np.zeros(len(points))]), lines=np.concatenate(lines))
    fill = vtkContourTriangulator()
    fill.SetInputData(outline)
    fill.Update()
    mesh = pv.wrap(fill.GetOutput())
    flat = (mesh.points[:, :2] - (points.min(axis=0) + points.max(axis=0)) / 2) * height / 68
    up = np.array([-right[1], right[0]])
    placed = np.column_stack([flat @ np.stack([right, up]), np.zeros(len(flat))]) + at
    return pv.PolyData(placed, faces=mesh.faces)


def merge(meshes: Sequence[pv.PolyData]) -> pv.PolyData:
    """Join texts into one mesh."""
    return pv.merge(list(meshes), merge_points=False) if len(meshes) > 1 else meshes[0]
