"""compute_sharpness: measures of many minimizers in one table, kept as they are computed and gone on from."""

import json
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from tqdm.auto import tqdm

from lltoolkit.columns import Chosen, choose_columns, hash_variables
from lltoolkit.errors import NondeterministicObjective, require_choice, require_whole
from lltoolkit.identity import device_name
from lltoolkit.labelled.provenance import hash_config, provenance
from lltoolkit.labelled.sharpness import (
    Column,
    add_attributes,
    adopt_table,
    columns_of,
    empty_table,
    fill_row,
    fill_value,
    gaps,
    is_begun,
    is_missing,
    part_of,
    places_of,
    read_attributes,
    row_dim,
    to_file,
)
from lltoolkit.minimizers import Initial, Minimizer, computing, how_it_generalizes, read_minimizers, sha256_or_none
from lltoolkit.store import TableFile, require_writable
from lltoolkit.table_identity import (
    identity_of,
    require_same_columns,
    require_same_kind,
    require_same_rows,
    uses_initial,
)
from lltoolkit.tensors.checkpoints import Checkpoint
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.sharpness.measure import Estimate
from lltoolkit.zoo.runs import Run

log = logging.getLogger(__name__)

WRITE_SECONDS = 1.0  # what a kill may cost, beside the value that is being computed


def compute_sharpness(
    models: Mapping[str, Objective] | Run | Sequence[Checkpoint],
    *,
    objective: Objective | None = None,
    measures: str | Iterable[Any] | Mapping[str, Any] | None = None,
    split: str | None = None,
    attributes: Mapping[str, Any] | None = None,
    initial: Initial | Mapping[str, Initial] | None = None,
    seed: int = 0,
    path: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
) -> xr.Dataset:
    """Measure the sharpness of minimizers, beside how they generalize.

    Parameters
    ----------
    models : mapping of str to Objective, Run, or sequence of Checkpoint
        The minimizers by name, of any architectures. Or a training, whose checkpoints are measured one by one, with
        `objective`.
    objective : Objective, optional
        For a training: what is measured at its checkpoints. Its model is of the same architecture; its own weights do
        not matter.
    measures : str, sequence or mapping, optional
        Names from ``tensors.sharpness.registry.MEASURES``; or pairs ``("sam", {"rho": 0.1})``, which are labelled
        ``sam(rho=0.1)``; or a mapping of label to a name, such a pair, or, where the label is the name, the options.
        ``seed`` and ``split`` are options of every measure. None: those that say of themselves that they are defaults,
        without those that need `initial` where it is not known.
    split : str, optional
        Where the measures are taken. Default: the first split, as a rule ``"train"``.
    attributes : mapping, optional
        How the models were made, for instance ``{"sgd": {"batch_size": 128}}``, ``{"batch_size": {"sgd": 128}}`` or
        ``{"batch_size": [128, 8192]}``: coordinates on the models, to group and to correlate by.
    initial : Params, nn.Module, Objective, or mapping of name to these, optional
        The weights at initialization, of all models or of each. Default for a Run: its first checkpoint.
    seed : int
        Of all that measures draw.
    path : str or Path, optional
        Where to keep the table, ``<name>.sharpness.nc``. What is computed is on disk about every second.
    resume : bool
        True: compute only what `path` lacks. More models, steps or measures join those that it has, and what is not
        asked for stays in it. False: replace it.
    progress : bool
        Show a progress bar.

    Returns
    -------
    xr.Dataset
        What was asked for, in its order; dims ``(model, measure)``, for a training ``(step, measure)``::

            value      (model, measure)  float64  in the units of ``measure_units``
            value_se   (model, measure)  float64  its standard error; NaN where it is exact or none is known
            censored   (model, measure)  int8     1: a bound at the end of the search range
            status     (model, measure)  int8     1 computed, a NaN too; 0 missing: the model has no such measure
            test_example_loss, test_example_error
                       (model, example)  float32  where all models have the same test examples
            measure_options
                       (measure)         str      JSON

        and, for the resume, whose numbers these are: ``theta_sha256``, ``data_sha256``, ``eval_batch_size``, ...

        Coords on ``model``: ``train_loss``, ``test_loss``, ``train_error``, ``test_error`` (1 - accuracy),
        ``loss_gap``, ``error_gap`` (test - train: positive is worse), each with ``<name>_se``; they need splits called
        "train" and "test", and are NaN where there is none. Standard errors are of a population without end that the
        examples were drawn from, and hold nothing of how trainings differ. Then ``model_name``, ``n_params`` and
        the attributes.
        Coords on ``step``: also ``epoch``, ``learning_rate``, and ``stability_threshold``, the sharpness that this
        very optimizer bears at that learning rate, as a statement on full batches alone; the attribute ``stability``
        says of which Hessian. For Adam that is the preconditioned one, not that of ``lambda_max``.
        Coords on ``measure``: ``measure_long_name``, ``measure_units``, ``measure_kind`` ("exact", "estimate", "lower
        bound"), ``measure_formula``, ``measure_sharper``.
        ``table[["value", "value_se"]].to_dataframe()`` has a row for each model and measure, with all of these coords.
        (Of the whole ``table`` it has one for each test example too.)
        A model whose loss is not finite is measured as any other: what is not a number of it is NaN, and the log warns.

    Raises
    ------
    ValueError
        For an unknown measure or option, a measure that needs `initial` where it is not known, one that was named and
        that a model has not, or what is no objective.
    ResumeMismatch
        If `path` holds a model or a measure of the same name that is another: in weights, examples, configuration,
        options or seed.
    SchemaError
        If `path` holds something else, or a damaged result; only with `resume`.
    NondeterministicObjective
        If two measurements of a model differ.
    OSError
        If `path` can't be written.
    RuntimeError
        If another process is writing `path`.

    References
    ----------
    Jiang et al. (2020), Fantastic Generalization Measures and Where to Find Them; the measures name their own.

    Examples
    --------
    >>> import torch
    >>> data = {"train": (torch.eye(2), torch.tensor([0, 1])), "test": (torch.ones(3, 2), torch.tensor([0, 1, 1]))}
    >>> models = {name: Objective(torch.nn.Linear(2, 2), data) for name in ("one", "other")}
    >>> table = compute_sharpness(models, measures=["weight_norm"], attributes={"lr": [0.1, 0.2]}, progress=False)
    >>> dict(table.sizes)
    {'model': 2, 'measure': 1, 'example': 3}
    >>> table["value"].to_pandas().columns.tolist()
    ['weight_norm']
    """
    seed = require_whole("seed", seed)
    dim, rows, told = read_minimizers(models, objective, initial)
    if objective is None:
        objective = rows[0].make()
    columns = choose_columns(
        measures,
        split=split or objective.splits[0],
        seed=seed,
        units=objective.units,
        unknown=[row.name for row in rows if row.initial is None],
    )
    for row in rows if dim == "model" else rows[:1]:
        if (units := row.make().units) != objective.units:
            raise ValueError(
                f"models have losses in other units: {rows[0].name!r} in {objective.units}, {row.name!r} in {units}. "
                "Put them into tables of their own."
            )
        for column in columns:
            require_choice(f"split (of {row.name!r})", column.split, row.make().splits)
    given = read_attributes(attributes, [row.name for row in rows])
    with ExitStack() as stack:
        file, stored = None, None
        if path is not None:
            file = stack.enter_context(TableFile(require_writable(path)))
            stored = file.load() if resume else None
            if stored is not None:
                require_same_kind(stored, dim, file.path)
                require_same_columns(stored, columns, file.path)
                require_same_rows(stored, rows, columns, file.path)
        table = _lay_out(rows, [each.column for each in columns], dim, objective, stored)
        add_attributes(table, given, stored)
        table.attrs |= told
        is_new = stored is None or table.attrs != stored.attrs or not to_file(table).equals(stored)
        work = _Work(table, file, rows, columns, progress, is_new=is_new)
        stack.enter_context(work)
        work.begin_rows()
        work.measure()
    return work.asked()


def _lay_out(
    rows: Sequence[Minimizer], columns: Sequence[Column], dim: str, objective: Objective, stored: xr.Dataset | None
) -> xr.Dataset:
    """Lay out a table of what is asked for, then of what is stored beside it, with what is stored filled in."""
    names: list[Any] = [row.name for row in rows]
    columns = list(columns)
    if stored is not None:
        names += [name for name in stored[dim].values.tolist() if name not in set(names)]
        asked = {column.label for column in columns}
        columns += [column for column in columns_of(stored) if column.label not in asked]
    if dim == "step":
        names.sort()
    if stored is not None:
        table = empty_table(names, columns, dim=dim, units=objective.units, attrs=stored.attrs)
        adopt_table(table, stored)
        return table
    made = provenance(
        "sharpness",
        config={},
        model="",
        n_params=0,
        device=device_name(objective.device),
        torch_version=str(torch.__version__),
    )
    return empty_table(names, columns, dim=dim, units=objective.units, attrs=made)


class _Work:
    """A table being filled: rows begun, values computed, both kept on disk about every second."""

    def __init__(
        self,
        table: xr.Dataset,
        file: TableFile | None,
        rows: Sequence[Minimizer],
        columns: Sequence[Chosen],
        progress: bool,
        *,
        is_new: bool,
    ) -> None:
        self.table, self._file, self._rows, self._columns = table, file, rows, columns
        self._dim = row_dim(table)
        self._places = places_of(table, self._dim, [row.name for row in rows])
        self._across = places_of(table, "measure", [column.label for column in columns])
        self._configs: dict[str, Any] = json.loads(table.attrs["config"]).get("objectives", {})
        self._is_new = is_new
        self._written = time.monotonic()
        n_values = int(is_missing(table)[self._places][:, self._across].sum())
        n_rows = int((~is_begun(table)[self._places]).sum())
        self._bar = tqdm(total=n_rows + n_values, unit="value", disable=not progress, desc="sharpness")

    def __enter__(self) -> "_Work":
        return self

    def __exit__(self, *_: object) -> None:
        # After an interrupt or a failure too: what is done is kept.
        self._bar.close()
        self._describe()
        if self._file is not None and self._is_new:
            self._file.write(to_file(self.table))

    def asked(self) -> xr.Dataset:
        """Give what was asked for, in its order."""
        return part_of(self.table, self._places, self._across)

    def begin_rows(self) -> None:
        """Measure how each row generalizes, where that is not known, and note whose numbers they are."""
        verified = False
        begun, of_initial = is_begun(self.table), uses_initial(self.table)
        for row, place in zip(self._rows, self._places, strict=True):
            # What is known by now: the checkpoints may have been measured before without their training.
            known: dict[str, Any] = {name: value for name, value in row.told.items() if not math.isnan(value)}
            if row.initial is not None and not of_initial[place]:
                known["initial_sha256"] = sha256_or_none(row.initial)
            for name, value in known.items():
                if self.table[name].values[place] != value:
                    self.table[name].values[place] = value
                    self._is_new = True
            if begun[place]:
                continue
            self._bar.set_description(f"{row.name}: loss")
            objective = row.make()
            if self._dim == "model":
                _verify(objective, row.name)
            numbers, examples = how_it_generalizes(objective)
            if not verified and math.isfinite(objective.at_minimizer()[objective.splits[0], "loss"]):
                verified = self._dim == "step"
                _verify(objective, row.name)
            self._configs[hash_config(objective.config)] = objective.config
            record = {
                **gaps(numbers),
                **identity_of(objective),
                "model_name": objective.model_name,
                "test_sha256": objective.examples["test"].sha256() if examples else "",
                "n_params": objective.n_params,
                "n_test_examples": objective.n_examples.get("test", 0),
                "eval_batch_size": objective.batch_size,
                "eval_threads": objective.n_threads,
            }
            kept = examples if self._dim == "model" else {}
            fill_row(self.table, place, record, {name: values.numpy() for name, values in kept.items()})
            self._keep()

    def measure(self) -> None:
        """Compute the values that are missing, row by row."""
        for row, place in zip(self._rows, self._places, strict=True):
            missing = is_missing(self.table)[place]
            todo = [
                (column, across) for column, across in zip(self._columns, self._across, strict=True) if missing[across]
            ]
            if not todo:
                continue
            objective = row.make()
            how = [int(self.table[name].values[place]) for name in ("eval_batch_size", "eval_threads")]
            with computing(objective, *how):
                for column, across in todo:
                    self._bar.set_description(f"{row.name}: {column.label}")
                    found = self._value(column, objective, row)
                    if found is None:
                        self._bar.update()
                        continue
                    chosen = hash_variables(column.variables_of(objective))
                    fill_value(self.table, (place, across), found.value, found.se, found.censored, chosen)
                    self._keep()

    def _value(self, column: Chosen, objective: Objective, row: Minimizer) -> Estimate | None:
        """Compute a value; None for a default measure that the model has not, which stays missing: it may be named."""
        initial = row.initial if column.measure.needs_initial else None
        try:
            return column.measure(objective, split=column.split, initial=initial, seed=column.seed, **column.options)
        except Exception as error:
            if column.by_default and isinstance(error, ValueError):
                log.warning("%s has no %s, so it is NaN there: %s", row.name, column.label, error)
                return None
            kept = "" if self._file is None else f"; what was computed before is kept in {self._file.path}"
            error.add_note(f"This was measure {column.label!r} of {self._dim} {row.name!r}{kept}.")
            raise

    def _keep(self) -> None:
        self._is_new = True
        self._bar.update()
        if self._file is not None and time.monotonic() - self._written > WRITE_SECONDS:
            self._describe()
            self._file.write(to_file(self.table))
            self._written = time.monotonic()

    def _describe(self) -> None:
        """Bring the attributes up to what the table holds."""
        table = self.table
        measures = {column.label: json.loads(column.options) for column in columns_of(table)}
        used = {str(value) for value in table["objective_sha256"].values}
        config = {"measures": measures, "objectives": {key: self._configs[key] for key in sorted(used - {""})}}
        begun = is_begun(table)
        names = list(dict.fromkeys(str(name) for name in table["model_name"].values[begun]))
        sizes = sorted({int(n) for n in table["n_params"].values[begun]})
        table.attrs |= {
            "config": json.dumps(config, sort_keys=True),
            "config_sha256": hash_config(config),
            "model": ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else ""),
            "n_params": sizes[0] if len(sizes) == 1 else " to ".join(map(str, sizes[:: max(1, len(sizes) - 1)])),
        }


def _verify(objective: Objective, name: str | int) -> None:
    try:
        objective.verify()
    except NondeterministicObjective as error:
        raise NondeterministicObjective(f"{name!r}: {error}") from error
    except ValueError as error:  # not finite there: one such model is no reason to lose the others
        log.warning("what is not a number of %r will be NaN: %s", name, error)
