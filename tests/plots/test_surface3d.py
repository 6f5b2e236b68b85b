import numpy as np
import pytest
from matplotlib.figure import Figure

from lltoolkit.plots import plot_surface
from tests.plots.surfaces import make_surface


@pytest.fixture
def ax3d():
    return Figure(figsize=(3, 3)).add_subplot(projection="3d")


@pytest.fixture
def drawn(ax3d, monkeypatch):
    """The heights that matplotlib is given."""
    seen = []
    draw = ax3d.plot_surface
    monkeypatch.setattr(ax3d, "plot_surface", lambda x, y, z, **style: (seen.append(z), draw(x, y, z, **style))[1])
    return seen


def test_heights_are_log10_and_ticks_say_values(surface, ax3d, drawn):
    plot_surface(surface, ax=ax3d)
    ticks = ax3d.get_zticks()
    words = [ax3d.zaxis.get_major_formatter()(tick, 0) for tick in ticks]
    assert dict(zip(words, ticks.round(9), strict=True))["$10^{2}$"] == 2.0
    assert ax3d.get_zlabel() == "train loss [nat]"
    assert (ax3d.get_xlabel(), ax3d.get_ylabel()) == (r"$\alpha$", r"$\beta$")
    parts = (drawn[0].shape[0] - 1) // 30  # every cell is a point of the finer grid
    expected = np.log10(surface.loss.values[0]).T
    np.testing.assert_allclose(drawn[0][::parts, ::parts], expected, atol=1e-9)


def test_clipping_and_empty_cells_are_told(surface, ax3d, drawn):
    surface["loss"][0, 3, 3] = np.nan
    plot_surface(surface, clip=10, ax=ax3d)
    note = "".join(text.get_text() for text in ax3d.texts)
    assert "clipped at 10 (max" in note
    assert "1 cell without a value" in note
    assert np.nanmax(drawn[0]) <= 1
    ax3d.figure.canvas.draw()


@pytest.mark.parametrize("values", [0.7, 0.0, -3.0, np.nan])
def test_flat_and_empty_surfaces(values, ax3d):
    surface = make_surface(4, 5)
    surface["loss"][:] = values
    plot_surface(surface, ax=ax3d).figure.canvas.draw()


def test_flat_axes_are_refused(surface, ax):
    with pytest.raises(ValueError, match="projection='3d'"):
        plot_surface(surface, ax=ax)


def test_filled_cells_are_counted(surface, ax3d):
    surface["status"][::2, 1::2] = 2
    plot_surface(surface, ax=ax3d)
    assert any("240 of 961 cells interpolated" in text.get_text() for text in ax3d.texts)


def test_a_single_row_says_what_draws_it(surface, ax3d):
    plot_surface(surface.isel(alpha=[2]), ax=ax3d)
    assert "plot_slice draws it" in "".join(text.get_text() for text in ax3d.texts)
