import numpy as np
import pytest
import xarray as xr

from lltoolkit.plots.spectrum import plot_spectrum


def make_spectrum(seed=0, *, top=12.0, n_probes=4, n_weights=10_000):
    """A bulk around 0, one negative outlier and one positive, of weight 1 / n_weights."""
    rng = np.random.default_rng(seed)
    values = np.concatenate(
        [rng.normal(0, 0.1, (n_probes, 20)), np.full((n_probes, 1), -1.0), np.full((n_probes, 1), top)], 1
    )
    values[0, 3] = np.nan  # a probe that ended early
    points, width = np.linspace(-1.5, top + 0.5, 400), 0.1
    bumps = [np.exp(-(((points - place) / width) ** 2) / 2) / width / np.sqrt(2 * np.pi) for place in (0, -1, top)]
    density = bumps[0] + (bumps[1] + bumps[2]) / n_weights
    return xr.Dataset(
        {
            "density": ("eigenvalue", density, {"long_name": "density", "units": "1 / (nat)"}),
            "density_low": ("eigenvalue", np.maximum(density - 0.5 * bumps[2], 0)),
            "density_high": ("eigenvalue", 1.2 * density),
            "ritz_value": (("probe", "node"), values),
        },
        coords={"eigenvalue": ("eigenvalue", points, {"long_name": "eigenvalue", "units": "nat"})},
        attrs={"kind": "spectrum", "eig_min": -1.0, "eig_max": top, "bandwidth": width, "n_weights": n_weights},
    )


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def test_curve_extremes_and_nodes(ax):
    spectrum = make_spectrum()
    assert plot_spectrum(spectrum, ax=ax) is ax
    drawn = lines(ax)
    curve = drawn[r"density (4 probes, $\sigma$ = 0.1)"]
    np.testing.assert_array_equal(curve.get_xdata(), spectrum.eigenvalue)
    np.testing.assert_array_equal(curve.get_ydata(), spectrum.density)
    assert list(drawn["$\\lambda_{\\min}$ = \N{MINUS SIGN}1"].get_xdata()) == [-1, -1]
    assert list(drawn[r"$\lambda_{\max}$ = 12"].get_xdata()) == [12, 12]
    assert len(drawn["_nodes"].get_xdata()) == 4 * 22 - 1
    assert (ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "eigenvalue [nat]", "density [1/nat]")


def test_a_single_eigenvalue_is_within_the_axis(ax):
    spectrum = make_spectrum(n_weights=10**7)
    plot_spectrum(spectrum, ax=ax)
    bottom, top = ax.get_ylim()
    peak = float(spectrum.density.sel(eigenvalue=12, method="nearest"))
    assert bottom < peak / 5
    assert bottom > peak / 30
    assert top > spectrum.density.max()
    ax.figure.draw_without_rendering()


def test_band_is_between_low_and_high(ax):
    spectrum = make_spectrum()
    plot_spectrum(spectrum, ax=ax)
    (band,) = ax.collections
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(float(spectrum.density_high.max()))
    assert band.get_paths()[0].vertices[:, 1].min() > 0  # a log axis has no 0


def test_one_probe_has_no_band(ax):
    spectrum = make_spectrum(n_probes=1)
    spectrum["density_low"][:] = spectrum["density_high"][:] = np.nan
    plot_spectrum(spectrum, nodes=False, ax=ax)
    assert not ax.collections
    assert any("1 probe," in label for label in lines(ax))
    assert "_nodes" not in lines(ax)


def test_two_spectra_on_one_axes(ax):
    plot_spectrum(make_spectrum(n_weights=10**6), name="a", ax=ax)
    bottom = ax.get_ylim()[0]
    plot_spectrum(make_spectrum(top=30.0), name="b", color="black", ax=ax)
    assert ax.get_ylim()[0] == pytest.approx(bottom)
    assert [text.get_text().split()[0] for text in ax.get_legend().get_texts()] == ["a"] * 3 + ["b"] * 3
    assert ax.get_legend()._ncols == 2
    ax.figure.draw_without_rendering()


def test_symlog_keeps_its_linear_part(ax):
    plot_spectrum(make_spectrum(), xscale="symlog", ax=ax)
    plot_spectrum(make_spectrum().assign_attrs(bandwidth=5.0), xscale="symlog", ax=ax)
    assert ax.get_xscale() == "symlog"
    assert ax.xaxis.get_transform().linthresh == 0.1


def test_without_attributes(ax):
    spectrum = make_spectrum()
    spectrum.attrs.clear()
    plot_spectrum(spectrum, ax=ax)
    assert r"$\lambda_{\max}$ = 12" in lines(ax)


def test_bad_input(ax):
    spectrum = make_spectrum()
    with pytest.raises(ValueError, match="Did you mean 'linear'"):
        plot_spectrum(spectrum, xscale="lin", ax=ax)
    with pytest.raises(ValueError, match=r"this surface has no variable 'density', but loss"):
        plot_spectrum(xr.Dataset({"loss": 1.0}, attrs={"kind": "surface"}), ax=ax)
    with pytest.raises(ValueError, match=r"spectrum.isel\(model=0\)"):
        plot_spectrum(spectrum.expand_dims(model=["a", "b"]), ax=ax)
    with pytest.raises(TypeError, match="hessian_spectrum"):
        plot_spectrum([1.0], ax=ax)
