"""Errors name what was given, what is allowed and the nearest match."""

import numpy as np
import pytest

import lltoolkit
from lltoolkit.errors import did_you_mean, require_choice, require_whole


def test_a_bad_choice_is_answered_with_all_choices_and_the_nearest():
    with pytest.raises(
        ValueError, match=r"^normalize='filtr' is not one of 'filter', 'layer'\. Did you mean 'filter'\?$"
    ):
        require_choice("normalize", "filtr", ["filter", "layer"])
    with pytest.raises(ValueError, match=r"^dims=4 is not one of 1, 2, 3\.$"):
        require_choice("dims", 4, iter((1, 2, 3)))
    require_choice("dims", 2, iter((1, 2, 3)))


def test_nothing_near_is_not_suggested():
    assert did_you_mean("xyz", ["filter", "layer"]) == ""
    assert did_you_mean(None, ["filter"]) == ""


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.float32(3)])
def test_whole_numbers_come_back_as_int(value):
    whole = require_whole("seed", value)
    assert whole == 3
    assert type(whole) is int


@pytest.mark.parametrize("value", [2.5, "3", b"3", None, True, float("nan"), float("inf"), [3], 0])
def test_what_is_no_whole_number_of_at_least_1_is_refused(value):
    with pytest.raises(ValueError, match=r"^batch_size=.*: give a whole number of at least 1\.$"):
        require_whole("batch_size", value, least=1)


def test_the_package_names_the_nearest_public_name():
    with pytest.raises(
        AttributeError, match=r"lltoolkit has no name 'compute_surfaces'\. Did you mean 'compute_surface'"
    ):
        lltoolkit.compute_surfaces  # noqa: B018


def test_errors_are_of_the_builtin_kinds_that_callers_catch():
    assert issubclass(lltoolkit.ResumeMismatch, ValueError)
    assert issubclass(lltoolkit.SchemaError, ValueError)
    assert issubclass(lltoolkit.NondeterministicObjective, RuntimeError)
    assert issubclass(lltoolkit.DivergedTraining, RuntimeError)
