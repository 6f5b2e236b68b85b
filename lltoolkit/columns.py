"""The columns of a table of sharpness: a choice of measures by name, with their options."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lltoolkit.errors import did_you_mean, require_whole
from lltoolkit.labelled.sharpness import Column
from lltoolkit.tensors.hessian import choose_variables
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.sharpness.measure import Measure
from lltoolkit.tensors.sharpness.registry import MEASURES


@dataclass(frozen=True)
class Chosen:
    """A measure with the options that it is called with.

    Attributes
    ----------
    label : str
        Its name in the table.
    measure : Measure
        Of the registry.
    options : dict
        Given ones.
    split, seed
        Where, and of what is drawn.
    column : Column
        How the table tells of it.
    by_default : bool
        Whether nobody asked for it by name: then it may not exist for some model.
    """

    label: str
    measure: Measure
    options: dict[str, Any]
    split: str
    seed: int
    column: Column
    by_default: bool = False

    def variables_of(self, objective: Objective) -> list[str]:
        """Name the parameters that the measure is of, where a function chooses them.

        Returns
        -------
        list of str
            In the model's order; empty where no function chooses.

        Raises
        ------
        ValueError
            If it chooses none.
        """
        chooses = self.options.get("parameters")
        return choose_variables(objective, chooses) if callable(chooses) else []


def hash_variables(names: Sequence[str]) -> str:
    """Hash names of parameters; an empty text where there are none."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest() if names else ""


def choose_columns(
    measures: str | Iterable[Any] | Mapping[str, Any] | None,
    *,
    split: str,
    seed: int,
    units: str,
    unknown: Sequence[str | int] = (),
) -> list[Chosen]:
    """Read the choice of measures.

    Parameters
    ----------
    measures : str, iterable, mapping or None
        As `compute_sharpness` takes them.
    split : str
        The split of those that don't name one.
    seed : int
        The seed of those that don't name one.
    units : str
        Of the loss.
    unknown : sequence
        The rows whose initial weights are not known.

    Returns
    -------
    list of Chosen
        At least one.

    Raises
    ------
    ValueError
        For a measure or an option that does not exist, two of one label, or a measure that needs initial weights which
        are not known.
    """
    chosen = [
        replace(_choose(label, name, dict(options), split, seed, units), by_default=measures is None)
        for label, name, options in _read(measures, unknown)
    ]
    labels = [each.label for each in chosen]
    if not labels or len(set(labels)) < len(labels):
        twice = sorted({label for label in labels if labels.count(label) > 1})
        raise ValueError(
            f"measures has {twice[0]!r} twice. Give another option, or labels of your own: {{label: (name, options)}}."
            if twice
            else f"measures={measures!r} is empty; None takes the defaults."
        )
    for each in chosen:
        if unknown and each.measure.needs_initial:
            raise ValueError(
                f"measure {each.label!r} needs the weights at initialization, and those of {unknown[0]!r} are not "
                "known. Give initial=, or leave the measure out."
            )
    return chosen


def _read(measures: Any, unknown: Sequence[str | int]) -> list[tuple[str | None, str, Mapping[str, Any]]]:
    """Bring every form of a choice into (label or None, name, options)."""
    if measures is None:
        # Those that need the weights at initialization are defaults just where these are known.
        names = [name for name, each in MEASURES.items() if (not unknown if each.needs_initial else each.default)]
        return [(None, name, {}) for name in names]
    if isinstance(measures, str):
        measures = [measures]
    pairs: list[tuple[str | None, Any]] = [(None, given) for given in measures]
    if isinstance(measures, Mapping):
        pairs = [
            (str(label), (label, given) if isinstance(given, Mapping) else given) for label, given in measures.items()
        ]
    found: list[tuple[str | None, str, Mapping[str, Any]]] = []
    for label, given in pairs:
        name, options = (given, {}) if isinstance(given, str) else _pair(given)
        if name not in MEASURES:
            raise ValueError(
                f"measure {name!r} is not one of {', '.join(map(repr, MEASURES))}.{did_you_mean(name, MEASURES)}"
            )
        found.append((label, name, options))
    return found


def _pair(given: Any) -> tuple[str, Mapping[str, Any]]:
    if (
        isinstance(given, tuple | list)
        and len(given) == 2
        and isinstance(given[0], str)
        and isinstance(given[1], Mapping)
    ):
        return given[0], given[1]
    raise ValueError(
        f"measures: {given!r} is neither a name nor a pair of a name and options, ('sam', {{'rho': 0.1}})."
    )


def _choose(label: str | None, name: str, options: dict[str, Any], split: str, seed: int, units: str) -> Chosen:
    measure = MEASURES[name]
    if label is None:
        label = name
        if options:
            label += f"({', '.join(f'{key}={_short(value)}' for key, value in options.items())})"
    split = options.pop("split", split)
    seed = require_whole("seed", options.pop("seed", seed))
    for key in options:
        if key not in measure.defaults:
            raise ValueError(
                f"measure {name!r} has no option {key!r}; it has {', '.join(measure.defaults) or 'none'}, split and "
                f"seed.{did_you_mean(key, measure.defaults)}"
            )
    everything = {"measure": name, "split": split, "seed": seed, **measure.defaults, **options}
    column = Column(
        label,
        measure.long_name,
        "1" if units == "1" and "{loss}" in measure.units else measure.units.replace("{loss}", units),
        measure.kind,
        measure.formula,
        json.dumps(everything, sort_keys=True, default=_as_json),
        "lower" if measure.lower_is_sharper else "higher",
    )
    return Chosen(label, measure, options, split, seed, column)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return getattr(value, "__qualname__", type(value).__name__) if callable(value) else str(value)


def _as_json(value: Any) -> str:
    # Of two lambdas the name is the same: what they choose of a row is kept beside its value (`variables_of`).
    return f"function {_short(value)}" if callable(value) else _short(value)
