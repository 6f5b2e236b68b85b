"""Progressive refinement, against surfaces known in closed form."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lltoolkit.labelled.audit import Audits, p95_upper
from lltoolkit.labelled.interpolate import Fields, Interpolant, picture
from lltoolkit.labelled.lattice import Lattices
from lltoolkit.labelled.plan import Answer
from lltoolkit.labelled.refine import refine

AXES = ("alpha", "beta", "gamma")


def grid(*axes):
    """Give coordinates of axes told by their number of points, or by hand."""
    axes = [np.linspace(-1, 1, axis) if isinstance(axis, int) else np.asarray(axis, dtype=float) for axis in axes]
    return dict(zip(AXES, axes, strict=False))


def on(coords, function):
    """Give a function's values at all cells, flat."""
    return function(*np.meshgrid(*coords.values(), indexing="ij")).ravel()


def bowl(a, b=0.0, c=0.0):
    return 0.05 + 3 * a**2 + 5 * b**2 + a * b + 2 * c**2


def ridge(a, b=0.0, c=0.0):
    return np.exp(4 * np.abs(a + 0.3 * b) + b**2 - c)


def run(coords, values, tolerance=0.05, seed=0, **splits):
    """Carry a plan out; gives what it filled and the cells of every ask."""
    truth = {"loss": np.stack([values, *splits.values()])}
    plan = refine(coords, splits=["train", *splits], metrics=["loss"], tolerance=tolerance, seed=seed)
    asks = [next(plan)]
    while True:
        try:
            asks.append(plan.send(Answer({name: block[:, asks[-1].cells] for name, block in truth.items()})))
        except StopIteration as stop:
            return stop.value, asks


def computed(filled):
    return set(np.flatnonzero(filled.status == 1))


# --- the tolerance


@pytest.mark.parametrize(
    ("coords", "surface", "share"),
    [
        (grid(51, 51), bowl, 0.12),
        (grid(41, 41), ridge, 0.4),
        (grid(201), bowl, 0.5),
        (grid(201), ridge, 0.5),
        (grid(13, 13, 13), bowl, 0.35),
        (grid(61, 21), bowl, 0.25),
        (grid(np.linspace(1, -1, 41), np.linspace(-0.5, 1.5, 41)), bowl, 0.2),
        (grid(np.sinh(np.linspace(-3, 3, 41)) / np.sinh(3), 41), bowl, 0.4),
    ],
    ids=["bowl", "ridge", "line", "kinked line", "volume", "not square", "descending", "uneven"],
)
def test_the_tolerance_holds_with_few_cells_computed(coords, surface, share):
    truth = on(coords, surface)
    filled, asks = run(coords, truth)
    errors = np.abs(np.log(filled.values["loss"][0] / truth))
    assert np.percentile(errors, 95) < 0.05
    assert errors.max() < 0.1
    assert len(computed(filled)) < share * len(truth)
    assert filled.attrs["audited_p95_upper"] <= 0.05
    assert filled.attrs["n_audit"] >= 59
    asked = np.concatenate([ask.cells for ask in asks])
    assert len(asked) == len(set(asked)) == filled.attrs["n_computed"]


def test_the_tolerance_holds_on_every_split():
    coords = grid(33, 33)
    smooth, rough = on(coords, bowl), on(coords, ridge)
    alone, _ = run(coords, smooth)
    both, _ = run(coords, smooth, test=rough)
    assert np.abs(np.log(both.values["loss"][1] / rough)).max() < 0.1
    assert len(computed(both)) > len(computed(alone))


def test_the_errors_told_are_about_as_large_as_the_errors_made():
    coords = grid(41, 41)
    truth = on(coords, ridge)
    filled, _ = run(coords, truth)
    open_cells = filled.status == 2
    made = np.abs(filled.values["loss"][0] - truth)[open_cells]
    told = filled.errors["loss"][0, open_cells]
    assert (made < 2 * told).mean() > 0.95
    assert 0.1 < np.median(made / told) < 1
    assert (filled.errors["loss"][0, ~open_cells] == 0).all()


def test_a_loss_that_touches_zero_is_held_to_a_share_of_its_range():
    coords = grid(41, 41)
    truth = on(coords, bowl) - 0.05  # 0 at the origin
    filled, _ = run(coords, truth, tolerance=0.01)
    assert np.abs(filled.values["loss"][0] - truth).max() < 0.02 * np.ptp(truth)
    assert len(computed(filled)) < 0.3 * len(truth)


def test_computed_cells_keep_their_values_bit_for_bit():
    coords = grid(31, 31)
    truth = on(coords, ridge)
    filled, _ = run(coords, truth)
    kept = filled.status == 1
    np.testing.assert_array_equal(filled.values["loss"][0, kept], truth[kept])


def test_an_equal_surface_costs_the_coarsest_lattice_and_an_audit():
    coords = grid(51, 51)
    filled, asks = run(coords, np.full(51 * 51, 2.5))
    np.testing.assert_allclose(filled.values["loss"], 2.5, rtol=1e-9)
    assert [len(ask.cells) for ask in asks] == [49, 59]


# --- the audit


def test_an_audit_catches_a_pit_that_no_lattice_met_and_refinement_goes_on():
    coords = grid(49, 49)
    # Between the lines of the coarsest lattice. It is 2 % of the plane, which a bound on 95 % may let pass: this seed's
    # audit meets it.
    pit = on(coords, lambda a, b: 2 - 1.5 * ((np.abs(a - 0.5) < 0.13) & (np.abs(b + 0.5) < 0.13)))
    filled, asks = run(coords, pit, seed=1)
    assert [ask.purpose for ask in asks].count("audit") > 1
    assert filled.attrs["n_audits"] > 1
    assert filled.attrs["audited_p95_upper"] <= 0.05
    assert np.percentile(np.abs(np.log(filled.values["loss"][0] / pit)), 95) < 0.05


def test_audits_are_fresh_and_grow():
    audits = Audits(1000, seed=3)
    mask = np.zeros(1000, dtype=bool)
    seen = []
    for _ in range(3):
        cells = audits.draw(mask)
        assert not mask[cells].any()
        mask[cells] = True
        seen.append(len(cells))
        audits.judge(Fields({"loss": np.ones((1, 2))}), np.zeros((1, len(cells))), {"loss": np.ones((1, len(cells)))})
    assert seen == [59, 73, 87]


def test_an_audit_draws_from_what_is_left_evenly():
    mask = np.arange(300) % 3 == 0
    counts = sum(np.bincount(Audits(300, seed).draw(mask), minlength=300) for seed in range(400))
    assert (counts[mask] == 0).all()
    assert counts[~mask].mean() == pytest.approx(400 * 59 / 200)
    assert counts[~mask].std() < 2 * np.sqrt(400 * 59 / 200)


@pytest.mark.parametrize(("n", "rank"), [(58, None), (59, 1), (92, 1), (93, 2), (124, 3)])
def test_the_bound_is_the_order_statistic_of_wilks(n, rank):
    errors = np.random.default_rng(0).random(n)
    expected = np.inf if rank is None else np.sort(errors)[-rank]
    assert p95_upper(errors) == expected


def test_the_bound_holds_19_times_in_20():
    rng = np.random.default_rng(1)
    bounds = [p95_upper(rng.exponential(size=80)) for _ in range(2000)]
    assert np.mean(np.array(bounds) >= -np.log(0.05)) > 0.94


def test_a_number_where_nan_was_fails_the_audit():
    audits = Audits(100, 0)
    fields = Fields({"loss": np.ones((1, 2))})
    computed_values = {"loss": np.where(np.arange(59) == 3, np.nan, 1.0)[None]}
    assert audits.judge(fields, np.zeros((1, 59)), computed_values).max() == np.inf
    assert audits.excess(0.05) > 1


# --- NaN and infinite values


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_is_interpolated_across_a_broken_region(value):
    coords = grid(41, 41)
    truth = on(coords, lambda a, b: np.where((a - 0.4) ** 2 + b**2 < 0.08, value, bowl(a, b)))
    filled, _ = run(coords, truth)
    broken = ~np.isfinite(truth)
    np.testing.assert_array_equal(~np.isfinite(filled.values["loss"][0]), broken)
    np.testing.assert_array_equal(filled.values["loss"][0, broken], truth[broken])
    beside = Lattices(coords).around(broken, level=99)
    assert (filled.status[beside] == 1).all()
    assert np.abs(np.log(filled.values["loss"][0, ~broken] / truth[~broken])).max() < 0.1


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_surface_without_a_finite_cell_is_computed_whole(value):
    coords = grid(13, 13)
    filled, _ = run(coords, np.full(169, value))
    assert (filled.status == 1).all()
    np.testing.assert_array_equal(filled.values["loss"], value)


# --- small grids


@given(st.lists(st.integers(2, 7), min_size=1, max_size=3), st.integers(0, 100))
def test_a_grid_too_small_for_an_audit_is_computed_whole(shape, seed):
    coords = grid(*shape)
    truth = np.random.default_rng(seed).lognormal(size=int(np.prod(shape)))
    filled, _ = run(coords, truth)
    left = (filled.status == 2).sum()
    assert left == 0 or len(truth) > 59
    if left == 0:
        np.testing.assert_array_equal(filled.values["loss"][0], truth)
        assert filled.attrs["n_audit"] == filled.attrs["audited_max"] == 0


# --- a plan is a function of its answers


def test_a_plan_begun_again_asks_the_same_and_fills_the_same():
    coords = grid(25, 25)
    truth = on(coords, ridge)
    filled, asks = run(coords, truth, seed=5)
    again, asks_again = run(coords, truth, seed=5)
    assert len(asks) == len(asks_again)
    for one, other in zip(asks, asks_again, strict=True):
        np.testing.assert_array_equal(one.cells, other.cells)
        assert one.purpose == other.purpose
    np.testing.assert_array_equal(filled.values["loss"], again.values["loss"])
    np.testing.assert_array_equal(filled.errors["loss"], again.errors["loss"])
    assert filled.attrs == again.attrs


def test_the_seed_moves_the_audit_alone():
    coords = grid(25, 25)
    truth = on(coords, bowl)
    asks, others = (run(coords, truth, seed=seed)[1] for seed in (0, 1))
    assert [ask.purpose for ask in asks] == [ask.purpose for ask in others]
    for one, other in zip(asks, others, strict=True):
        assert np.array_equal(one.cells, other.cells) == (one.purpose == "grid")


@pytest.mark.parametrize("surface", [bowl, ridge])
def test_a_smaller_tolerance_goes_on_from_a_larger_one(surface):
    coords = grid(41, 41)
    truth = on(coords, surface)
    loose, strict = (computed(run(coords, truth, tolerance=tolerance)[0]) for tolerance in (0.2, 0.05))
    assert len(loose & strict) > 0.85 * len(loose)


def test_a_finer_grid_goes_on_from_a_coarser_one():
    coarse, fine = grid(25, 25), grid(49, 49)
    cells = computed(run(coarse, on(coarse, bowl))[0])
    same = {(2 * (cell // 25)) * 49 + 2 * (cell % 25) for cell in cells}
    more = computed(run(fine, on(fine, bowl))[0])
    assert len(same & more) > 0.6 * len(same)  # the audits of the two are drawn from different cells


# --- lattices and pictures


@given(st.lists(st.integers(2, 40), min_size=1, max_size=3), st.sampled_from([(-1, 1), (0, 1), (1, -0.5), (2, 3)]))
def test_each_lattice_holds_the_coarser_ones_the_ends_and_the_origin(shape, ends):
    lattices = Lattices(dict(zip(AXES, (np.linspace(*ends, n) for n in shape), strict=False)))
    cells = [lattices.lattice(level).reshape(lattices.shape) for level in range(lattices.n_levels)]
    assert cells[-1].all()
    for coarser, finer in itertools.pairwise(cells):
        assert finer[coarser].all()
    origin = tuple(int(np.abs(np.linspace(*ends, n)).argmin()) for n in shape)
    for lattice in cells:
        assert lattice[origin]
        assert lattice[(0,) * len(shape)]
        assert lattice[(-1,) * len(shape)]


def test_a_picture_of_some_cells_is_whole_and_keeps_them():
    coords = grid(31, 31)
    truth = on(coords, bowl)
    cells = np.random.default_rng(0).permutation(961)[:200]
    values = {"loss": truth[None, cells]}
    whole = picture(coords, cells, values)
    np.testing.assert_array_equal(whole["loss"][0, cells], truth[cells])
    assert np.percentile(np.abs(np.log(whole["loss"][0] / truth)), 95) < 0.05
    shuffled = np.random.default_rng(1).permutation(200)
    other = picture(coords, cells[shuffled], {"loss": values["loss"][:, shuffled]})
    np.testing.assert_array_equal(whole["loss"], other["loss"])


@pytest.mark.parametrize("n_known", [0, 1, 2, 3, 4])
def test_a_picture_of_next_to_nothing_is_no_error(n_known):
    cells = np.arange(n_known) * 7
    whole = picture(grid(5, 7), cells, {"loss": np.full((1, n_known), 2.0)})["loss"][0]
    np.testing.assert_allclose(whole[cells], 2)
    assert np.isfinite(whole).all() == (n_known >= 3)


def test_kriging_reproduces_what_it_knows_and_planes_nearly():
    points = np.random.default_rng(0).random((80, 2)) * 10
    fields = np.stack([np.ones(80), 2 + 0.5 * points[:, 0] - points[:, 1]])
    surface = Interpolant(points, fields)
    inside = np.random.default_rng(1).random((40, 2)) * 6 + 2
    values, errors = surface.predict(np.vstack([points[:5], inside]))
    np.testing.assert_allclose(values[:, :5], fields[:, :5], atol=1e-6)
    np.testing.assert_allclose(values[0], 1, atol=1e-9)
    np.testing.assert_allclose(values[1, 5:], 2 + 0.5 * inside[:, 0] - inside[:, 1], atol=0.1)
    assert errors[0].max() < 1e-9


def test_noise_is_handed_on_and_not_averaged_out():
    points = Lattices(grid(9, 9)).points
    fields = points.sum(axis=1)[None]
    quiet, noisy = Interpolant(points, fields), Interpolant(points, fields, np.full((1, 81), 0.3))
    between = points[:40] + 0.5
    assert (quiet.predict(between)[1] < 0.05).all()
    assert (noisy.predict(between)[1] >= 0.3).all()
    np.testing.assert_array_equal(quiet.predict(between)[0], noisy.predict(between)[0])
