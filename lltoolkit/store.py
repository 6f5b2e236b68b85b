"""Results on disk: NetCDF files written by tiles and atomic merges, opened and closed at once. Torch-free."""

import errno
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import xarray as xr
from filelock import FileLock, Timeout

from lltoolkit.errors import SchemaError, did_you_mean
from lltoolkit.files import leftovers, require_folder, write_atomically
from lltoolkit.labelled.schema import axes_of, label, require_plain_attrs, validate
from lltoolkit.labelled.surface import count_nonfinite, count_reduced, fill_cells, tile_id

log = logging.getLogger(__name__)

GRIDS = ("surface", "curvature")  # kinds that are filled cell by cell


def open_result(path: str | Path) -> xr.Dataset:
    """Open a result: load it whole, check it and close the file.

    Parameters
    ----------
    path : str or Path
        A file that lltoolkit wrote, complete or in the making (then its last merge is read).

    Returns
    -------
    xr.Dataset
        In memory; no file stays open.

    Raises
    ------
    FileNotFoundError
        If there is no such file; near names in the folder are told.
    SchemaError
        If the file is no NetCDF, is damaged or holds no lltoolkit result.
    """
    path = Path(path)
    if not path.exists():
        nearby = [other.name for other in path.parent.glob("*.nc")] if path.parent.is_dir() else []
        raise FileNotFoundError(f"{path} does not exist.{did_you_mean(path.name, nearby)}")
    if path.is_dir():
        raise SchemaError(f"{path} is a folder; a result is one .nc file.")
    with path.open("rb") as file:
        signature = file.read(8)
    if not signature.startswith((b"\x89HDF\r\n", b"CDF")):
        size = path.stat().st_size
        raise SchemaError(f"{path} is no NetCDF file ({size} bytes, begins with {signature[:4]!r}).")
    try:
        dataset = xr.load_dataset(path, engine="netcdf4")
    except Exception as error:  # netCDF4 and HDF5 raise OSError, RuntimeError, KeyError and others on the same damage
        raise SchemaError(
            f"{path} is damaged or cut short ({type(error).__name__}: {error}). Copy it again from its source, or "
            "compute it again with resume=False."
        ) from error
    return validate(dataset, source=str(path))


def save_result(dataset: xr.Dataset, path: str | Path) -> Path:
    """Write a result, whole or not at all.

    Parameters
    ----------
    dataset : xr.Dataset
        A result with its attributes; labels that are missing are added.
    path : str or Path
        Ends with ``.nc``, as a rule ``<name>.<kind>.nc``. An older file is replaced.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    SchemaError
        If `dataset` is no complete result.
    ValueError
        If `path` does not end with ``.nc``.
    OSError
        If the file can't be written.
    """
    path = require_writable(path)
    dataset = validate(label(dataset.copy()), source="this Dataset")
    for name, variable in dataset.variables.items():
        lists = {key for key, value in variable.attrs.items() if isinstance(value, list | tuple)}  # flag_values
        plain = {key: value for key, value in variable.attrs.items() if key not in lists}
        require_plain_attrs(plain, f"variable {name!r} of this Dataset")
    # zlib 1 with shuffle: every ncdump and Panoply reads it, which can't be said of zstd or blosc.
    packed = {"zlib": True, "complevel": 1, "shuffle": True}
    encoding = {name: packed for name, variable in dataset.data_vars.items() if variable.dtype.kind in "fiu"}
    for variable in dataset.variables.values():
        variable.encoding = {}

    def write(temporary: Path) -> None:
        try:
            dataset.to_netcdf(temporary, engine="netcdf4", format="NETCDF4", encoding=encoding)
        except RuntimeError as error:  # so HDF5 says that the disk is full
            raise OSError(errno.EIO, f"{error}, a full disk?", str(path)) from error

    write_atomically(path, write)
    return path


def require_writable(path: str | Path, n_bytes: int = 0, kind: str = "surface") -> Path:
    """Check, before any computing, that a result can be written; its folder is made.

    Parameters
    ----------
    path : str or Path
        The result's file.
    n_bytes : int
        How large it will be, about.
    kind : str
        Of result, for the name that an error proposes.

    Returns
    -------
    Path
        The same path.

    Raises
    ------
    ValueError
        If `path` does not end with ``.nc``.
    IsADirectoryError
        If `path` is a folder.
    OSError
        If it can't be written, or the disk lacks the room.
    """
    path = Path(path)
    if path.suffix != ".nc":
        raise ValueError(f"path={str(path)!r} does not end with .nc; for example {path.stem}.{kind}.nc.")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file in it.")
    require_folder(path.parent, of=path)
    free = shutil.disk_usage(path.parent).free
    if free < n_bytes:
        raise OSError(
            f"{path} needs about {n_bytes / 1e6:.0f} MB, its disk has {free / 1e6:.0f} MB free. Make room first."
        )
    return path


class GridFile:
    """A surface or curvature map being computed: ``<path>`` holds the last merge, ``<path>.tiles/`` what came after it.

    One writer at a time holds the lock; readers open the last merge at any time. A tile that was reported as
    added survives any kill.

    Parameters
    ----------
    path : Path
        The result's file, as `require_writable` returns it.

    Raises
    ------
    RuntimeError
        On entering, if another process is writing this result.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path.with_name(path.name + ".tiles")
        self._lock = FileLock(self.folder / "lock", timeout=0)  # its descriptor is not inherited by child processes
        self._n_tiles = 0
        self._surface: xr.Dataset | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(exist_ok=True)
        _hold(self._lock, self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not any(self.folder.glob("[0-9]*")):  # no tile, and nothing of a journal: all that a resume would need
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()

    @property
    def has_tiles(self) -> bool:
        """Whether cells are on disk that the last merge lacks."""
        return any(self.folder.glob("*.npz"))

    def load(self) -> xr.Dataset | None:
        """Read the last merge and the tiles after it.

        Returns
        -------
        xr.Dataset or None
            None if nothing was begun. A tile that can't be read is left out, with a warning in the log: its
            cells are computed again.

        Raises
        ------
        SchemaError
            If the merged file is damaged or no result.
        """
        if not self.path.exists():
            return None
        surface = open_result(self.path)
        if surface.attrs["kind"] not in GRIDS:
            return surface
        for name, variable in surface.data_vars.items():
            order = tuple(dim for dim in ("direction", "split", *axes_of(surface)) if dim in variable.dims)
            if variable.dims != order and set(variable.dims) == set(order):
                raise SchemaError(
                    f"{self.path} was saved with its dims in another order, {name} over {variable.dims} instead of "
                    f"{order}: tiles don't fit it. Transpose it and save it again, use another path, or resume=False "
                    "to replace it."
                )
        owner = tile_id(surface)
        for tile in sorted(self.folder.glob("*.npz")):
            try:
                with tile.open("rb") as stream, np.load(stream) as arrays:
                    block = dict(arrays)
                if str(block.pop("owner")) == owner:  # else left by a run on a coarser grid, which is in the merge
                    cells, batch_size = block.pop("cells"), block.pop("batch_size", None)
                    fill_cells(surface, cells, block)
                    count_reduced(surface, cells, None if batch_size is None else int(batch_size))
            except Exception as error:
                log.warning("tile %s can't be read (%s); its cells are computed again", tile, error)
        return surface

    def begin(self, surface: xr.Dataset) -> None:
        """Write the surface as it stands and forget older tiles; from now on it is filled by `add`."""
        self._surface = surface
        self.merge()

    def add(self, cells: np.ndarray, values: Mapping[str, np.ndarray], batch_size: int | None = None) -> None:
        """Keep a tile of computed cells, on disk when this returns.

        Parameters
        ----------
        cells : ndarray
            Shape ``(k,)``, flat positions in the grid.
        values : mapping
            Variable to its values, shape ``(n_splits, k)``; without splits ``(1, k)``.
        batch_size : int, optional
            Of the forward passes, where memory ran out at the surface's own.

        Raises
        ------
        RuntimeError
            Before `begin`.
        """
        if self._surface is None:
            raise RuntimeError("begin(surface) first.")
        arrays = {"cells": cells, "owner": np.array(tile_id(self._surface)), **values}
        if batch_size is not None:
            arrays["batch_size"] = np.array(batch_size)
        path = self.folder / f"{self._n_tiles:06}.npz"
        try:
            write_atomically(path, lambda temporary: np.savez(temporary, **arrays))  # type: ignore[arg-type]
        except OSError as error:
            raise self._kept(error) from error
        self._n_tiles += 1
        fill_cells(self._surface, cells, values)
        count_reduced(self._surface, cells, batch_size)

    def merge(self) -> None:
        """Write all that is known to ``<path>`` by atomic rename; then its tiles may go.

        Raises
        ------
        RuntimeError
            Before `begin`.
        """
        if self._surface is None:
            raise RuntimeError("begin(surface) first.")
        self._surface.attrs |= count_nonfinite(self._surface)
        try:
            save_result(self._surface, self.path)
        except OSError as error:
            raise self._kept(error) from error
        for tile in self.folder.glob("*.npz"):
            tile.unlink()

    def _kept(self, error: OSError) -> OSError:
        return type(error)(
            error.errno or errno.EIO,
            f"{self.path} can't be written ({error.strerror or error}). What was computed before is kept in it and in "
            f"{self.folder.name}/; mend the cause and call again: it goes on from there",
        )


class TableFile:
    """A result that is small enough to be written whole, again and again, while it is computed.

    One writer at a time holds the lock; readers open the file at any time.

    Parameters
    ----------
    path : Path
        The result's file, as `require_writable` returns it.

    Raises
    ------
    RuntimeError
        On entering, if another process is writing this result.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark = path.with_name(path.name + ".lock")
        self._lock = FileLock(self._mark, timeout=0)

    def __enter__(self) -> Self:
        _hold(self._lock, self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mark.unlink(missing_ok=True)  # while it is held: nobody can have got hold of this one since
        self._lock.release()

    def load(self) -> xr.Dataset | None:
        """Read what the file holds.

        Returns
        -------
        xr.Dataset or None
            None where there is no file.

        Raises
        ------
        SchemaError
            If it is damaged or no result.
        """
        return open_result(self.path) if self.path.exists() else None

    def write(self, dataset: xr.Dataset) -> None:
        """Replace the file by `dataset`, whole or not at all.

        Raises
        ------
        OSError
            If it can't be written; the older file is kept.
        """
        try:
            save_result(dataset, self.path)
        except OSError as error:
            raise type(error)(
                error.errno or errno.EIO,
                f"{self.path} can't be written ({error.strerror or error}). What was written before is kept; mend the "
                "cause and call again: it goes on from there",
            ) from error


def _hold(lock: FileLock, path: Path) -> None:
    """Take the lock of a result, and clear away what a killed writer of it left: nobody else's while it is held."""
    try:
        lock.acquire()
    except Timeout as error:
        raise RuntimeError(f"{path} is being written by another process. Wait for it, or use another path.") from error
    for left in leftovers(path):
        left.unlink()
