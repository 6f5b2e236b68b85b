from io import BytesIO

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lltoolkit.plots import figure, plot_contour, plot_grid, plot_surface
from lltoolkit.plots.style import BLUE, FRACTION_COLORS, LOSS_COLORS, RED, VENUES, provenance_of


@pytest.mark.parametrize("venue", VENUES)
def test_width_is_the_columns(venue):
    for columns in (1, 2):
        with figure(venue, columns=columns) as (fig, _):
            assert fig.get_size_inches()[0] == VENUES[venue][columns - 1]


def test_settings_end_with_the_block():
    before = mpl.rcParams.copy()
    with figure("icml"):
        assert mpl.rcParams["font.size"] == 8
    assert mpl.rcParams == before


def test_settings_end_with_an_error():
    before = mpl.rcParams.copy()
    with pytest.raises(ZeroDivisionError), figure("icml") as (fig, _):
        fig.set_dpi(1 / 0)
    assert mpl.rcParams == before


def test_saved_after_the_block_with_embedded_fonts(tmp_path):
    with figure((3, 2), n_columns=2) as (fig, axes):
        axes[0].set_title("after")
    fig.savefig(tmp_path / "a.pdf")
    assert b"/Type3" not in (tmp_path / "a.pdf").read_bytes()
    assert mpl.rcParams["pdf.fonttype"] == 3
    assert fig._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(("venue", "columns"), [("neurps", 1), ("icml", 3), ((0, 1), 1)])
def test_bad_sizes(venue, columns):
    with pytest.raises(ValueError, match=r"venue|columns"), figure(venue, columns=columns):
        pass


def test_provenance_leaves_out_what_is_not_told(surface):
    assert provenance_of(surface.assign_attrs(n_examples="none", normalize="none"), "test") == (
        "test examples; frozen batch-norm statistics"
    )


@pytest.mark.parametrize(
    ("venue", "aspect", "projection"), [("icml", 0.8, None), ("slides", 0.8, None), ("icml", 1.0, "3d")]
)
def test_nothing_hangs_over_the_edge_and_saving_again_gives_the_same(surface, venue, aspect, projection):
    """About as high as wide, one pass of the layout leaves labels outside; and it does not know those of 3D axes."""
    with figure(venue, aspect=aspect, subplot_kw={"projection": projection}) as (fig, ax):
        draw = plot_surface if projection else plot_contour
        draw(surface, clip=100, ax=ax)
    written = []
    for _ in range(2):
        buffer = BytesIO()
        fig.savefig(buffer, format="pdf")
        written.append(buffer.getvalue())
    assert written[0] == written[1]
    with fig.settled():
        fig.draw_without_rendering()
        box = fig.get_tightbbox().get_points()
    assert (box > 0).all()
    assert (box < fig.get_size_inches()).all()
    assert isinstance(fig.get_layout_engine(), ConstrainedLayoutEngine)  # what is added later is laid out, too


def test_settings_stay_whatever_is_drawn(surface, tmp_path):
    before = mpl.rcParams.copy()
    plot_grid({"a": surface}).savefig(tmp_path / "a.pdf")
    assert mpl.rcParams == before


def test_loss_and_accuracy_differ_in_grey():
    lightness = [np.dot(mpl.colors.to_rgb(color), [0.3, 0.59, 0.11]) for color in (BLUE, RED)]
    assert lightness[1] - lightness[0] > 0.15


@pytest.mark.parametrize("name", [LOSS_COLORS, FRACTION_COLORS])
def test_colours_rise_in_grey(name):
    grey = mpl.colormaps[name](np.linspace(0, 1, 50))[:, :3] @ [0.3, 0.59, 0.11]
    assert (np.diff(grey) > 0).all()
