"""The command ``lltoolkit plot``: draws any stored result, without torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lltoolkit.errors import require_choice
from lltoolkit.options import reports_errors

if TYPE_CHECKING:
    import xarray as xr

FORMS = ("filled", "lines", "heat", "slice", "surface", "render")


@reports_errors
def plot(
    result: Annotated[
        Path, typer.Argument(help="A result, .surface.nc, .curvature.nc, .sharpness.nc or .spectrum.nc.")
    ],
    out: Annotated[Path | None, typer.Option(help="The figure: .png, .pdf or .svg; default beside the result.")] = None,
    form: Annotated[
        str, typer.Option(help=f"Of a surface or map: {', '.join(FORMS)}; default filled, for a line slice.")
    ] = "",
    var: Annotated[str, typer.Option(help="loss, accuracy, eig_ratio, ...; default loss, of a map eig_ratio.")] = "",
    split: Annotated[str, typer.Option(help="train or test; a slice shows all.")] = "train",
    gamma: Annotated[float, typer.Option(help="Of a volume: the plane nearest to it.")] = 0.0,
    against: Annotated[str, typer.Option(help="Of a table of sharpness: what it is drawn against.")] = "error_gap",
) -> None:
    """Draw a stored result; no network is run and torch is not needed.

    Example: `lltoolkit plot r56.surface.nc --form render --out r56.png`
    """
    from lltoolkit.labelled.schema import axes_of
    from lltoolkit.store import open_result

    dataset = open_result(result)
    kind = str(dataset.attrs["kind"])
    if out is not None and not out.parent.is_dir():
        raise FileNotFoundError(f"the folder {out.parent} of --out does not exist; make it first.")
    stem = result.name.removesuffix(".nc").removesuffix(f".{kind}")
    if kind in ("sharpness", "spectrum"):
        out = out or result.with_name(f"{stem}.{kind}.png")
        _draw_other(dataset, out, against)
        typer.echo(out)
        return
    if not axes_of(dataset):
        raise ValueError(f"{result} holds a {kind}, which plot does not draw; info prints it.")
    var = var or ("eig_ratio" if kind == "curvature" else "loss")
    if "gamma" in dataset.dims:
        dataset = dataset.sel(gamma=gamma, method="nearest")
    form = form or ("slice" if len(axes_of(dataset)) == 1 else "filled")
    require_choice("form", form, FORMS)
    if len(axes_of(dataset)) == 1 and form != "slice":
        raise ValueError(f"--form {form} takes a surface of two axes or more; a line is drawn by --form slice.")
    # A map, or another variable, has a name of its own: no picture replaces another one.
    which = "" if (kind, var) == ("surface", "loss") else f".{var}"
    out = out or result.with_name(f"{stem}{which}.{form}.png")
    if form == "render":
        from lltoolkit.render import export_scene, render_surface

        export_scene(render_surface(dataset, var=var, split=split), out)
    else:
        _draw(dataset, out, form=form, var=var, split=split)
    typer.echo(out)


def _draw(dataset: "xr.Dataset", out: Path, *, form: str, var: str, split: str) -> None:
    from lltoolkit import plots

    with plots.figure((5.0, 4.0), subplot_kw={"projection": "3d"} if form == "surface" else None) as (figure, ax):
        if form == "slice":
            plots.plot_slice(dataset, var=var, ax=ax)
        elif form == "surface":
            plots.plot_surface(dataset, var=var, split=split, ax=ax)
        else:
            plots.plot_contour(dataset, var=var, split=split, form=form, ax=ax)
        figure.savefig(out)


def _draw_other(dataset: "xr.Dataset", out: Path, against: str) -> None:
    from lltoolkit import plots

    if dataset.attrs["kind"] == "sharpness":
        plots.plot_sharpness(dataset, against=against).savefig(out)
        return
    with plots.figure((5.0, 3.0)) as (figure, ax):
        plots.plot_spectrum(dataset, ax=ax)
        figure.savefig(out)
