"""The few exceptions that need a name, and the wording that all errors share."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class NondeterministicObjective(RuntimeError):  # noqa: N818 - a fixed public name
    """Two measurements of the same weights on the same examples differ."""


class ResumeMismatch(ValueError):  # noqa: N818 - a fixed public name
    """A stored result belongs to another minimizer, data set, subspace or configuration."""


class SchemaError(ValueError):
    """A Dataset or a file is not a result that this version of lltoolkit can read."""


class DivergedTraining(RuntimeError):  # noqa: N818 - named after what happened, as the others
    """The training loss became NaN or infinite; everything up to the last checkpoint is kept."""


def did_you_mean(value: object, options: Iterable[object]) -> str:
    """Name the nearest of `options`.

    Returns
    -------
    str
        ``" Did you mean 'x'?"``, or an empty string where nothing is near.

    Examples
    --------
    >>> did_you_mean("filtr", ["filter", "layer"])
    " Did you mean 'filter'?"
    """
    nearest = get_close_matches(str(value), [str(option) for option in options], n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


def require_whole(name: str, value: Any, *, least: int | None = None) -> int:
    """Return a whole number, given as one or as a float without a fraction.

    Parameters
    ----------
    name : str
        The argument's name, as the user typed it.
    value : object
        What was given.
    least : int, optional
        The smallest number allowed.

    Returns
    -------
    int
        A plain int, also for a NumPy number.

    Raises
    ------
    ValueError
        With what was given and what is allowed.
    """
    try:
        whole = int(value)
        if isinstance(value, str | bytes | bool) or whole != value or (least is not None and whole < least):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        at_least = "" if least is None else f" of at least {least}"
        raise ValueError(f"{name}={value!r}: give a whole number{at_least}.") from error
    return whole


def require_choice(name: str, value: object, options: Iterable[object]) -> None:
    """Raise unless `value` is one of `options`.

    Parameters
    ----------
    name : str
        The argument's name, as the user typed it.
    value : object
        What was given.
    options : iterable
        What is allowed.

    Raises
    ------
    ValueError
        With what was given, what is allowed and the nearest match.
    """
    options = list(options)
    if value not in options:
        allowed = ", ".join(repr(option) for option in options)
        raise ValueError(f"{name}={value!r} is not one of {allowed}.{did_you_mean(value, options)}")
