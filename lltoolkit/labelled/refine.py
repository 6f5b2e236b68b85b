"""Progressive refinement: compute a cell only where its neighbours don't tell it well enough. Torch-free."""

from collections.abc import Generator, Mapping, Sequence

import numpy as np

from lltoolkit.labelled.audit import Audits, worst
from lltoolkit.labelled.interpolate import Fields, Interpolant
from lltoolkit.labelled.lattice import Lattices
from lltoolkit.labelled.plan import Answer, Ask, Filled, Known, Plan
from lltoolkit.labelled.schema import STATUS

CAUTION = 2.2  # standard errors that must fit into the tolerance: nearly every cell is to hold it, not only most
MORE = (1.15, 1.5)  # times as many after a failed audit: as many as its bound was too large, within these
RUNGS = 4.0  # tolerances are approached by this factor from above, so that a stricter plan begins as a looser one
LOOSEST = 0.8  # the first of them
LEAST = 3  # points that an interpolant needs


def refine(
    coords: Mapping[str, np.ndarray],
    *,
    splits: Sequence[str],
    metrics: Sequence[str],
    tolerance: float,
    seed: int = 0,
) -> Plan:
    """Plan a surface on all examples that leaves out the cells which interpolation gives within `tolerance`.

    From a coarse lattice around the origin on, each level computes those of its cells whose expected error, `CAUTION`
    standard errors of the kriging interpolant, exceeds the tolerance, until none is left; then come the cells between.
    The expected error is measured: by how far computed cells were off when predicted from their neighbours. It is an
    estimate and can miss what lies between all computed cells, so the result is audited: at least 59 cells, drawn at
    random from those left out, are computed and compared. If the bound on the 95th percentile of their errors breaks
    the tolerance, the audited cells join the known ones, refinement goes on with more caution, and fresh cells are
    drawn, until an audit holds or nothing is left to leave out.

    The errors of losses are of the natural logarithm: 0.05 is 5 % of the loss at this cell. Where a split's loss
    touches 0 or goes below they are shares of the range of its known values. Accuracy is held to the same tolerance,
    absolute; other metrics are interpolated and audited, and steer nothing. Cells beside a NaN or an infinite value are
    always computed.

    Parameters
    ----------
    coords : mapping
        Axis name to its coordinates, in the order of the axes.
    splits, metrics : sequence of str
        What is measured at each cell.
    tolerance : float
        Largest error of a cell, above 0; on every split.
    seed : int
        Of the audit.

    Yields
    ------
    Ask
        Cells to compute on all examples.

    Returns
    -------
    Filled
        Errors are standard errors of the interpolated cells. Attributes: ``tolerance``, ``tolerance_met`` (0 or 1),
        ``n_computed``, ``n_audits`` and what the last audit found, see `audit`.

    References
    ----------
    Cohn (1996), Neural network exploration using optimal experiment design, for computing where the expected error is
    largest. Wilks (1941) for the audit.
    """
    grid = Lattices(coords)
    known = Known(grid.n_cells, splits, metrics)
    audits = Audits(grid.n_cells, seed)
    caution = CAUTION
    yield from compute(grid, known, np.flatnonzero(grid.lattice(0)))
    while True:
        for level, allowed in steps(grid, tolerance):
            while len(cells := wanted(grid, known, level, allowed / caution)):
                yield from compute(grid, known, cells)
        excess = yield from audit(grid, known, audits, tolerance)
        if excess <= 1:
            break
        caution *= np.clip(excess, *MORE)
    return fill(grid, known, {"tolerance": float(tolerance), "tolerance_met": 1} | audits.attrs)


def steps(grid: Lattices, tolerance: float) -> list[tuple[int, float]]:
    """Give what is held one after the other: tolerances down to the one asked for, and for each the levels."""
    looser = [LOOSEST]
    while looser[-1] / RUNGS > tolerance:
        looser.append(looser[-1] / RUNGS)
    rungs = [rung for rung in looser if rung > tolerance] + [tolerance]
    return [(level, rung) for rung in rungs for level in range(grid.n_levels)]


def compute(
    grid: Lattices, known: Known, cells: np.ndarray, purpose: str = "grid"
) -> Generator[Ask, Answer, dict[str, np.ndarray]]:
    """Ask for cells on all examples and note them.

    Yields
    ------
    Ask
        If there is anything to ask for.

    Returns
    -------
    dict
        Metric -> ``(n_splits, k)``, in the order of `cells`.
    """
    ordered = grid.sort(cells)
    if len(ordered):
        known.add(ordered, (yield Ask(ordered, purpose)).values)
    return {name: block[:, cells] for name, block in known.values.items()}


def wanted(grid: Lattices, known: Known, level: int, allowed: float) -> np.ndarray:
    """Choose the cells of a level's lattice that are to be measured next.

    Parameters
    ----------
    grid, known
        The grid, and what is known of it.
    level : int
        Of which lattice.
    allowed : float
        Largest standard error that may stay.

    Returns
    -------
    ndarray
        Flat positions, rising: those whose standard error is larger, and those beside a broken cell.
    """
    open_cells = grid.lattice(level) & known.missing()
    if known.sound().sum() < LEAST:
        return np.flatnonzero(open_cells)
    beside = open_cells & grid.around(known.broken(), level)
    rest = np.flatnonzero(open_cells & ~beside)
    fields, surface = interpolant(grid, known)
    _, errors = surface.predict(grid.points[rest])
    return np.union1d(np.flatnonzero(beside), rest[worst(fields, errors) > allowed])


def interpolant(grid: Lattices, known: Known) -> tuple[Fields, Interpolant]:
    """Interpolate all metrics through the measured finite cells."""
    sound = np.flatnonzero(known.sound())
    values = {name: block[:, sound] for name, block in known.values.items()}
    errors = {name: block[:, sound] for name, block in known.errors.items()}
    fields = Fields(values)
    return fields, Interpolant(grid.points[sound], fields.pack(values), fields.pack_errors(values, errors))


def audit(grid: Lattices, known: Known, audits: Audits, tolerance: float) -> Generator[Ask, Answer, float]:
    """Compute a fresh draw of the cells that are not computed, and tell how well the tolerance holds there.

    Yields
    ------
    Ask
        The drawn cells; all of them where an audit would take them all.

    Returns
    -------
    float
        How many times the tolerance the bound on the 95th percentile of the errors is, at most 1 if it holds: the
        worst of loss and accuracy on all splits.
    """
    computed = known.computed()
    if (~computed).sum() <= audits.size or known.sound().sum() < LEAST:
        yield from compute(grid, known, np.flatnonzero(~computed))
        audits.skip()
        return 0.0
    cells = audits.draw(computed)
    fields, predicted, _ = predict(grid, known, cells)
    audits.judge(fields, predicted, (yield from compute(grid, known, cells, "audit")))
    return audits.excess(tolerance)


def predict(grid: Lattices, known: Known, cells: np.ndarray) -> tuple[Fields, np.ndarray, np.ndarray]:
    """Give what the plan would say of cells now: what was measured there, else the interpolant.

    Returns
    -------
    fields : Fields
        Names and scales of the rows.
    values, errors : ndarray
        Shape ``(n_fields, k)``, scaled.
    """
    fields, surface = interpolant(grid, known)
    values, errors = surface.predict(grid.points[cells])
    measured = ~known.missing()[cells]
    if measured.any():
        own = {name: block[:, cells[measured]] for name, block in known.values.items()}
        own_errors = {name: block[:, cells[measured]] for name, block in known.errors.items()}
        values[:, measured], errors[:, measured] = fields.pack(own), fields.pack_errors(own, own_errors)
    return fields, values, errors


def fill(grid: Lattices, known: Known, attrs: Mapping[str, str | int | float]) -> Filled:
    """Interpolate what is not measured."""
    values = {name: block.copy() for name, block in known.values.items()}
    errors = {name: block.copy() for name, block in known.errors.items()}
    rest = np.flatnonzero(known.missing())
    if len(rest):
        fields, scaled, scaled_errors = predict(grid, known, rest)
        found = fields.unpack(scaled)
        found_errors = fields.unpack_errors(found, scaled_errors)
        for name in known.metrics:
            values[name][:, rest], errors[name][:, rest] = found[name], found_errors[name]
    status = np.where(known.missing(), STATUS["interpolated"], known.status).astype(np.int8)
    return Filled(values, errors, status, {**attrs, "n_computed": int(known.computed().sum())})
