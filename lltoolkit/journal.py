"""What cells gave beyond their means: the values of single examples, and estimates from samples. Torch-free.

A plan that measures samples asks for them, and asks again when a killed run is resumed or a finished surface is held to
a smaller tolerance. They are kept in parts beside the surface while it is computed, then in one file,
``<name>.surface.samples.npz``. Cells are known by their coordinates, which a finer grid shares.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from lltoolkit.files import leftovers, write_atomically

log = logging.getLogger(__name__)

Place: TypeAlias = tuple[float, ...]  # the number of the direction, then the coordinates
FULL = ""  # stands for the sample of all examples


class Journal:
    """Records of cells, in memory and, if it has a folder, on disk as soon as they are added.

    Parameters
    ----------
    path : Path, optional
        The file of a finished surface's records.
    folder : Path, optional
        Where the parts of a surface under construction lie.
    owner : str
        Names the minimizer, examples, subspace and configuration; records of others are not taken.
    """

    def __init__(self, path: Path | None = None, folder: Path | None = None, owner: str = "") -> None:
        self._path, self._folder, self._owner = path, folder, owner
        self._records: dict[tuple[str, Place], dict[str, np.ndarray]] = {}
        self._n_parts = 0

    def load(self) -> None:
        """Read what is on disk. A part that can't be read is left out, with a warning: its cells are measured again."""
        self._sweep()
        parts = [self._path] if self._path is not None and self._path.exists() else []
        if self._folder is not None:
            parts += sorted(self._folder.glob("*.part"))
        for part in parts:
            try:
                with part.open("rb") as stream, np.load(stream) as arrays:
                    block = dict(arrays)
                if str(block.pop("owner")) != self._owner:
                    log.warning("%s belongs to another surface and is not used", part)
                    continue
                self._take(block)
            except Exception as error:
                log.warning("%s can't be read (%s); what it held is measured again", part, error)

    def forget(self) -> None:
        """Remove what is on disk."""
        self._sweep()
        parts = [] if self._folder is None else list(self._folder.glob("*.part"))
        for part in [*parts, *([] if self._path is None else [self._path])]:
            part.unlink(missing_ok=True)

    def _sweep(self) -> None:
        if self._path is not None:
            for left in leftovers(self._path):  # of a writer that was killed: the surface's lock is held
                left.unlink()

    def has(self, sample: str, place: Place) -> bool:
        """Tell whether a cell was measured on a sample, given by its name."""
        return (sample, place) in self._records

    def get(self, sample: str, place: Place) -> Mapping[str, np.ndarray]:
        """Return a cell's record."""
        return self._records[sample, place]

    def add(self, sample: str, places: Sequence[Place], values: Mapping[str, np.ndarray]) -> None:
        """Keep records, on disk when this returns.

        Parameters
        ----------
        sample : str
            Name of the sample, or `FULL`.
        places : sequence
            Of k cells.
        values : mapping
            Name to an array whose first axis has length k.
        """
        block = {"sample": np.array(sample), "places": np.array(places, dtype=np.float64)}
        block |= {f"values/{name}": array for name, array in values.items()}
        if self._folder is not None:
            arrays = {f"0/{name}": array for name, array in block.items()} | {"owner": np.array(self._owner)}
            taken = {part.stem for part in self._folder.glob("*.part")}
            while f"{self._n_parts:06}" in taken:
                self._n_parts += 1
            part = self._folder / f"{self._n_parts:06}.part"
            write_atomically(part, lambda temporary: _savez(temporary, arrays))
        self._take({f"0/{name}": array for name, array in block.items()})

    def finish(self) -> None:
        """Put everything into the one file; then its parts may go."""
        if self._path is None or self._folder is None or not self._records:
            return
        by_sample: dict[tuple[str, tuple[str, ...]], list[Place]] = {}
        for sample, place in sorted(self._records):
            by_sample.setdefault((sample, tuple(self._records[sample, place])), []).append(place)
        arrays = {"owner": np.array(self._owner)}
        for number, ((sample, names), places) in enumerate(by_sample.items()):
            arrays[f"{number}/sample"] = np.array(sample)
            arrays[f"{number}/places"] = np.array(places, dtype=np.float64)
            for name in names:
                stacked = np.stack([self._records[sample, place][name] for place in places])
                arrays[f"{number}/values/{name}"] = stacked
        write_atomically(self._path, lambda temporary: _savez(temporary, arrays, packed=True))
        for part in self._folder.glob("*.part"):
            part.unlink()

    def _take(self, block: Mapping[str, np.ndarray]) -> None:
        for number in sorted({name.partition("/")[0] for name in block}):
            sample = str(block[f"{number}/sample"])
            values = {name.split("/", 2)[2]: a for name, a in block.items() if name.startswith(f"{number}/values/")}
            for row, place in enumerate(block[f"{number}/places"]):
                record = self._records.setdefault((sample, tuple(map(float, place))), {})
                record |= {name: array[row] for name, array in values.items()}


def _savez(path: Path, arrays: Mapping[str, np.ndarray], *, packed: bool = False) -> None:
    with path.open("wb") as stream:  # an open file: numpy would add a suffix of its own to a name
        (np.savez_compressed if packed else np.savez)(stream, **arrays)  # type: ignore[arg-type]
