"""The command ``lltoolkit info``: what a result file holds and how it was made."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lltoolkit.options import reports_errors

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

ROOM = 160  # letters for the words of a variable


@reports_errors
def info(result: Annotated[Path, typer.Argument(help="Any result file, .nc.")]) -> None:
    """Print what a result file holds and how it was made.

    Example: `lltoolkit info r56.surface.nc`
    """
    from lltoolkit.store import open_result

    typer.echo(describe_file(open_result(result), result))


def describe_file(dataset: "xr.Dataset", path: Path) -> str:
    """Describe a result in lines: what it holds, then every attribute.

    Returns
    -------
    str
        For a terminal.
    """
    lines = [f"{path}: {dataset.attrs['kind']} of {dataset.attrs['model']}, {path.stat().st_size / 1e3:.0f} kB", ""]
    for name, coordinate in dataset.coords.items():
        lines.append(f"  {name:<14} {coordinate.size} values: {_summary(coordinate.values)}")
    lines.append("")
    for name, variable in dataset.data_vars.items():
        if name == "status":
            meanings = variable.attrs["flag_meanings"].split()
            counts = {word: int((variable.values == flag).sum()) for flag, word in enumerate(meanings)}
            text = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        elif variable.dtype.kind in "UOT":
            text = _summary(variable.values)
        else:
            units = variable.attrs.get("units", "1")
            text = f"{float(variable.min()):.6g} to {float(variable.max()):.6g}" + (f" {units}" if units != "1" else "")
        lines.append(f"  {name:<14} ({', '.join(map(str, variable.dims))}): {text}")
    lines.append("")
    for name, value in dataset.attrs.items():
        if isinstance(value, str) and value.startswith("{"):
            lines.append(f"  {name}:")
            lines += [f"      {key}: {inner}" for key, inner in json.loads(value).items()]
        else:
            lines.append(f"  {name}: {value}")
    return "\n".join(lines)


def _summary(values: "np.ndarray") -> str:
    """Give a range of numbers, or some of the words."""
    if values.dtype.kind not in "UOT":
        return f"{values.min():g} to {values.max():g}"
    different = list(dict.fromkeys(str(value) for value in values.flat))
    if len(different) == 1:
        return f"all {different[0]}"
    shown = different[: max(1, ROOM // max(map(len, different)))]
    return ", ".join(shown) + (f" and {len(different) - len(shown)} more" if len(different) > len(shown) else "")
