"""The command ``lltoolkit plot``: draws any stored results, without torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lltoolkit.errors import require_choice
from lltoolkit.options import reports_errors

if TYPE_CHECKING:
    import xarray as xr

OF_SURFACES = ("contour", "slice", "surface", "scene", "grid")
# What can be drawn of a kind of result, the default first.
KINDS = {
    "surface": OF_SURFACES,
    "curvature": OF_SURFACES,
    "trajectory": ("path", "loss", "scene"),
    "statistics": ("statistics",),
    "sharpness": ("sharpness",),
    "spectrum": ("spectrum",),
}
FORMS = ("filled", "lines", "heat")
FILMS = (".mp4", ".gif", ".html")


@reports_errors
def plot(
    results: Annotated[
        list[Path],
        typer.Argument(help="A result: .surface.nc, .curvature.nc, .trajectory.nc, .sharpness.nc, ...; or several."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The figure: .png, .pdf, .svg; of a path or scene also .mp4, .gif, .html.")
    ] = None,
    kind: Annotated[
        str, typer.Option(help="contour, slice, surface, scene or grid; of a path: path, loss or scene.")
    ] = "",
    form: Annotated[str, typer.Option(help="Of contours: filled, lines or heat.")] = "",
    var: Annotated[str, typer.Option(help="loss, accuracy, eig_ratio, ...; default loss, of a map eig_ratio.")] = "",
    split: Annotated[str, typer.Option(help="train or test; a slice shows all.")] = "train",
    gamma: Annotated[float, typer.Option(help="Of a volume: the plane nearest to it.")] = 0.0,
    surface: Annotated[Path | None, typer.Option(help="Of a path: the surface that it runs over.")] = None,
    color: Annotated[str, typer.Option(help="Of a path's points: auto, residual, epoch or run.")] = "auto",
    against: Annotated[str, typer.Option(help="Of a table of sharpness: what it is drawn against.")] = "error_gap",
    style: Annotated[str, typer.Option(help="Size and type: neurips, icml, iclr, cvpr, jmlr or slides.")] = "neurips",
    columns: Annotated[int, typer.Option(help="Of the page, that the figure spans: 1 or 2.")] = 1,
) -> None:
    """Draw stored results; no network is run and torch is not needed.

    Several surfaces: `lltoolkit plot with.surface.nc without.surface.nc --kind grid --out both.pdf`

    An optimizer's path: `lltoolkit plot r20.trajectory.nc --surface r20.surface.nc --out r20.pdf`, or `.mp4`

    Example: `lltoolkit plot r56.surface.nc --kind scene --out r56.png`
    """
    from lltoolkit.labelled.schema import axes_of
    from lltoolkit.store import open_result

    named = {file.name.removesuffix(".nc").removesuffix(".surface"): open_result(file) for file in results}
    if len(named) < len(results):
        raise ValueError("two of the files have one name, which is what their panels are called: rename one.")
    first = next(iter(named.values()))
    stored = str(first.attrs["kind"])
    if different := {str(each.attrs["kind"]) for each in named.values()} - {stored}:
        raise ValueError(
            f"one figure takes results of one kind; these are {stored} and {', '.join(sorted(different))}."
        )
    if stored not in KINDS:
        raise ValueError(f"{results[0]} holds a {stored}, which plot does not draw; info prints it.")
    is_line = stored in ("surface", "curvature") and len(axes_of(first)) == 1
    kind = kind or ("slice" if is_line else "grid" if len(named) > 1 and stored == "surface" else KINDS[stored][0])
    require_choice("--kind", kind, KINDS[stored])
    if form:
        require_choice("--form", form, FORMS)
    if is_line and kind != "slice":
        raise ValueError(f"--kind {kind} takes a surface of two axes or more; a line is drawn by --kind slice.")
    if len(named) > 1 and kind not in ("grid", "statistics") and stored != "trajectory":
        raise ValueError(f"--kind {kind} draws one result, not {len(named)}; several surfaces go into --kind grid.")
    if out is not None and not out.parent.is_dir():
        raise FileNotFoundError(f"the folder {out.parent} of --out does not exist; make it first.")
    if stored != "trajectory" and (surface is not None or color != "auto"):
        raise ValueError(f"--surface and --color are of paths, and this is a {stored}: leave them out.")
    if "gamma" in first.dims:
        named = {name: each.sel(gamma=gamma, method="nearest") for name, each in named.items()}
    var = var or ("eig_ratio" if stored == "curvature" else "loss")
    out = out or _beside(results[0], stored, kind, var)
    below = None if surface is None else open_result(surface)
    options: dict[str, Any] = {"var": var, "split": split}
    if stored == "trajectory":
        _draw_path(named, below, out, kind=kind, form=form or "lines", color=color, page=(style, columns), **options)
    elif kind == "scene":
        from lltoolkit.render import export_scene, render_surface

        export_scene(render_surface(next(iter(named.values())), **options), out)
    else:
        _draw(named, out, kind=kind, form=form or "filled", against=against, page=(style, columns), **options)
    typer.echo(out)


def _beside(result: Path, stored: str, kind: str, var: str) -> Path:
    """Name a picture after its result; a map, or another variable, has a name of its own: none replaces another."""
    stem = result.name.removesuffix(".nc").removesuffix(f".{stored}")
    parts = [] if stored == "surface" else [stored]
    parts += [var] if var not in ("loss", "eig_ratio") else []
    parts += [kind] if kind != stored else []
    return result.with_name(".".join([stem, *parts, "png"]))


def _draw(
    named: "Mapping[str, xr.Dataset]",
    out: Path,
    *,
    kind: str,
    form: str,
    against: str,
    page: tuple[str, int],
    var: str,
    split: str,
) -> None:
    from lltoolkit import plots

    (style, columns), first = page, next(iter(named.values()))
    paged: dict[str, Any] = {"venue": style, "columns": columns}
    result = named if len(named) > 1 else first
    if kind == "grid":
        drawn = plots.plot_grid(named, var=var, split=split, form=form, **paged)
    elif kind == "sharpness":
        drawn = plots.plot_sharpness(first, against=against, **paged)
    elif kind == "statistics":
        drawn = plots.plot_trajectory_statistics(_by_run(named), **paged)
    else:
        projection = {"projection": "3d"} if kind == "surface" else None
        aspect = 0.8 if kind in ("contour", "surface") else None
        with plots.figure(style, columns=columns, aspect=aspect, subplot_kw=projection) as (drawn, ax):
            if kind == "slice":
                plots.plot_slice(first, var=var, ax=ax)
            elif kind == "surface":
                plots.plot_surface(first, var=var, split=split, ax=ax)
            elif kind == "spectrum":
                plots.plot_spectrum(first, ax=ax)
            else:
                plots.plot_contour(first, var=var, split=split, form=form, ax=ax)
            plots.save_figure(drawn, out, result=result)
            return
    plots.save_figure(drawn, out, result=result)


def _draw_path(
    named: "Mapping[str, xr.Dataset]",
    below: "xr.Dataset | None",
    out: Path,
    *,
    kind: str,
    form: str,
    color: str,
    page: tuple[str, int],
    var: str,
    split: str,
) -> None:
    from lltoolkit import plots

    runs = _by_run(named)
    of_plane: dict[str, Any] = {"var": var, "split": split}
    is_film = out.suffix.lower() in FILMS and kind == "path"
    if below is None and (is_film or kind == "scene"):
        raise ValueError("this takes the surface that the path runs over: give --surface NAME.surface.nc.")
    if kind == "scene":
        from lltoolkit.render import export_scene, render_surface

        export_scene(render_surface(below, trajectory=runs, **of_plane), out)
    elif is_film:
        plots.animate_trajectory(runs, below, out, form=form, color=color, **of_plane)
    else:
        with plots.figure(page[0], columns=page[1], aspect=0.75) as (figure, ax):
            if kind == "loss":
                plots.plot_trajectory_loss(runs, ax=ax, **of_plane)
            else:
                plots.plot_trajectory(runs, surface=below, form=form, color=color, ax=ax, **of_plane)
            plots.save_figure(figure, out, result=named if len(named) > 1 else next(iter(named.values())))


def _by_run(named: "Mapping[str, xr.Dataset]") -> Any:
    """Name several results after their runs, where these differ; give one as it is."""
    if len(named) == 1:
        return next(iter(named.values()))
    runs = [str(each.attrs.get("run", "")) for each in named.values()]
    names = runs if len(set(runs)) == len(runs) and all(runs) else list(named)
    return dict(zip(names, named.values(), strict=True))
