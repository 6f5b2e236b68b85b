import matplotlib as mpl
import pytest

from lltoolkit.plots import figure
from lltoolkit.plots.style import VENUES, provenance_of


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
