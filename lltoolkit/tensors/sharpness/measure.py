"""What a sharpness measure is: a function with its name, units and kind, and what it gives."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from lltoolkit.errors import did_you_mean, require_choice, require_whole
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.params import Params

Kind: TypeAlias = Literal["exact", "estimate", "lower bound"]
GIVEN = ("objective", "split", "initial", "seed")  # what every measure may take; the rest are its options


@dataclass(frozen=True)
class Estimate:
    """What a measure gives.

    Attributes
    ----------
    value : float
        In the measure's units; NaN where the loss is not a number.
    se : float
        Standard error of `value` over the measure's own random draws (directions, probes, batches), with the
        objective's examples held fixed; NaN where the value is exact or there is no estimate.
    censored : bool
        Whether `value` is a bound at the end of a search: the true one is larger.
    """

    value: float
    se: float = math.nan
    censored: bool = False


@dataclass(frozen=True)
class Measure:
    """A named sharpness measure; call it with an objective.

    Attributes
    ----------
    name, long_name : str
        As in a table, and as a label says it.
    units : str
        ``{loss}`` stands for the units of the objective's loss.
    kind : {"exact", "estimate", "lower bound"}
        "estimate": from random draws or to a tolerance. "lower bound": of a maximum that was searched for.
    formula : str
        One line.
    function : callable
        ``function(objective, *, split, ...)``.
    defaults : mapping
        Options with their defaults, JSON-able.
    needs_initial : bool
        Whether it needs the weights at initialization.
    default : bool
        Whether it is among the measures that are computed unless others are named.
    logit_normalizable : bool
        Whether it has the option ``logit_normalized``.
    lower_is_sharper : bool
        Whether a lower value means sharper, as of a radius.
    """

    name: str
    long_name: str
    units: str
    kind: Kind
    formula: str
    function: Callable[..., Estimate]
    defaults: Mapping[str, Any]
    needs_initial: bool = False
    default: bool = True
    logit_normalizable: bool = False
    lower_is_sharper: bool = False

    def __call__(
        self, objective: Objective, *, split: str, initial: Params | None = None, seed: int = 0, **options: Any
    ) -> Estimate:
        """Measure the sharpness of an objective's minimizer.

        Parameters
        ----------
        objective : Objective
            Whose minimizer.
        split : str
            On which of its splits.
        initial : Params, optional
            The weights at initialization, for the measures that need them.
        seed : int
            Of all that is drawn: the same seed gives the same value.
        **options
            See `defaults`.

        Returns
        -------
        Estimate
            The value and its standard error.

        Raises
        ------
        ValueError
            If an option or the split does not exist, or `initial` is needed and not given.
        """
        require_choice("split", split, objective.splits)
        for option in options:
            if option not in self.defaults:
                raise ValueError(
                    f"{self.name} has no option {option!r}; it has {', '.join(self.defaults) or 'none'}."
                    f"{did_you_mean(option, self.defaults)}"
                )
        if self.needs_initial and initial is None:
            raise ValueError(
                f"{self.name} needs the weights at initialization: give them (initial=), by parameter name, or leave "
                "the measure out."
            )
        given = {"split": split, "initial": initial, "seed": require_whole("seed", seed)}
        taken = inspect.signature(self.function).parameters
        return self.function(
            objective,
            **{name: value for name, value in given.items() if name in taken},
            **{**self.defaults, **options},
        )


def options_of(function: Callable[..., Estimate], **own: Any) -> dict[str, Any]:
    """Read the options of a measure's function from its signature; `own` ones replace its defaults."""
    parameters = inspect.signature(function).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name not in GIVEN} | own


def average(values: Sequence[float]) -> Estimate:
    """Average independent draws.

    Parameters
    ----------
    values : sequence of float
        At least one.

    Returns
    -------
    Estimate
        Their mean and its standard error; NaN for the error of a single one.
    """
    drawn = torch.tensor(values, dtype=torch.float64)
    se = float(drawn.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return Estimate(float(drawn.mean()), se)


def require_positive(name: str, value: Any) -> float:
    """Return a number above 0.

    Parameters
    ----------
    name : str
        The argument's name, as the user typed it.
    value : object
        What was given.

    Returns
    -------
    float
        It.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}={value!r}: give a number above 0.") from error
    if isinstance(value, str | bool) or not 0 < number < math.inf:
        raise ValueError(f"{name}={value!r}: give a number above 0.")
    return number
