"""Two levels, against surfaces whose every example is known."""

import numpy as np
import pytest

from lltoolkit.labelled.plan import Answer
from lltoolkit.labelled.twolevel import two_level

AXES = ("alpha", "beta", "gamma")
N = 3000


def grid(*shape):
    return {axis: np.linspace(-1, 1, n) for axis, n in zip(AXES, shape, strict=False)}


def examples(coords, n=N, seed=0):
    """Give heavy-tailed cross-entropies of n examples at all cells, and which are right; ``(n_cells, n)`` both."""
    rng = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*coords.values(), indexing="ij"), axis=-1).reshape(-1, len(coords))
    distance = np.sqrt((places**2).sum(axis=1) + 0.02)[:, None] - 0.1
    waves = np.sin(places @ rng.normal(0, 2, (len(coords), 6)) + rng.uniform(0, 6, 6))
    features = distance * np.exp(2 * distance) * (1 + 0.5 * waves)
    slopes = np.abs(rng.standard_normal((n, 6))) * np.exp(0.7 * rng.standard_normal((n, 1)))
    margin = 6 + 2 * rng.standard_normal(n) - 10 * (rng.random(n) < 0.03)
    excess = 2.5 * features @ slopes.T - margin
    return np.logaddexp(0, excess), (excess < 0).astype(float)


class World:
    """Answers asks from the values of every example, and remembers what was asked."""

    def __init__(self, coords, data, weights=None):
        self.coords, self.data = coords, data
        self.metrics = list(next(iter(data.values())))
        self.n = {split: block["loss"].shape[1] for split, block in data.items()}
        self.weights = weights or {split: np.ones(n) for split, n in self.n.items()}
        self.truth = {name: self._each(lambda split, name=name: self._mean(split, name)) for name in self.metrics}
        self.asks = []

    def _mean(self, split, name):
        with np.errstate(invalid="ignore"):
            return self.data[split][name] @ self.weights[split] / self.weights[split].sum()

    def _each(self, function):
        return np.stack([function(split) for split in self.data])

    def answer(self, ask):
        if ask.size:
            samples = ask.samples[ask.size]
            return Answer(
                estimates={
                    ask.size: {
                        name: self._each(
                            lambda split, name=name: samples[split].estimate(
                                name, self.data[split][name][np.ix_(ask.cells, samples[split].positions)]
                            )
                        )
                        for name in self.metrics
                    }
                }
            )
        values = {name: block[:, ask.cells] for name, block in self.truth.items()}
        keys = [(split, name) for split in self.data for name in self.metrics] if ask.examples else []
        return Answer(values, examples={(split, name): self.data[split][name][ask.cells] for split, name in keys})

    def run(self, **options):
        options = {"tolerance": 0.05} | options
        plan = two_level(
            self.coords,
            splits=list(self.data),
            metrics=self.metrics,
            n_examples=self.n,
            weights=self.weights,
            **options,
        )
        self.asks = [next(plan)]
        while True:
            try:
                self.asks.append(plan.send(self.answer(self.asks[-1])))
            except StopIteration as stop:
                return stop.value

    def errors(self, filled):
        """Give the errors of log loss, ``(n_splits, n_cells)``."""
        return np.abs(np.log(filled.values["loss"] / self.truth["loss"]))


@pytest.fixture(scope="module")
def plane():
    coords = grid(33, 33)
    loss, right = examples(coords)
    few, few_right = examples(coords, n=900, seed=1)
    return World(coords, {"train": {"loss": loss, "accuracy": right}, "test": {"loss": few, "accuracy": few_right}})


@pytest.fixture(scope="module")
def carried_out(plane):
    return plane.run(), plane.asks


@pytest.fixture
def filled(carried_out):
    return carried_out[0]


@pytest.fixture
def asks(carried_out):
    return carried_out[1]


def test_the_tolerance_holds_on_every_split_for_a_part_of_the_cost(plane, filled):
    errors = plane.errors(filled)
    assert (np.percentile(errors, 95, axis=1) < 0.05).all()
    assert errors.max() < 0.1
    assert np.percentile(np.abs(filled.values["accuracy"] - plane.truth["accuracy"]), 95) < 0.05
    assert filled.attrs["n_forwards"] < filled.attrs["n_forwards_full"] / 4
    assert filled.attrs["audited_p95_upper"] <= 0.05
    assert set(filled.status) == {1, 2, 3}


def test_the_attributes_count_every_forward_pass(plane, filled, asks):
    n_all = sum(plane.n.values())
    each = [
        sum(len(sample.positions) for sample in ask.samples[ask.size].values()) if ask.size else n_all for ask in asks
    ]
    assert filled.attrs["n_forwards"] == sum(n * len(ask.cells) for n, ask in zip(each, asks, strict=True))
    assert filled.attrs["n_forwards_full"] == 33 * 33 * n_all
    assert filled.attrs["n_computed"] == (filled.status == 1).sum()
    assert filled.attrs["n_estimated"] == (filled.status == 3).sum()


def test_standard_errors_are_as_large_as_the_errors(plane, filled):
    sampled = filled.status == 3
    for name in ("loss", "accuracy"):
        scores = (filled.values[name] - plane.truth[name])[:, sampled] / np.maximum(
            filled.errors[name][:, sampled], 1e-9
        )
        assert (np.abs(scores) < 3).mean() > 0.95
    assert (filled.errors["loss"][:, filled.status == 1] == 0).all()
    assert (filled.errors["loss"][:, filled.status == 2] > 0).all()


def test_cells_computed_on_all_examples_are_exact(plane, filled):
    kept = filled.status == 1
    np.testing.assert_array_equal(filled.values["loss"][:, kept], plane.truth["loss"][:, kept])


def test_a_plan_begun_again_asks_the_same_and_fills_the_same(plane, filled, asks):
    one, (other, asks_again) = filled, (plane.run(), plane.asks)
    assert [(ask.size, ask.purpose) for ask in asks] == [(ask.size, ask.purpose) for ask in asks_again]
    for first, second in zip(asks, asks_again, strict=True):
        np.testing.assert_array_equal(first.cells, second.cells)
    for name in ("loss", "accuracy"):
        np.testing.assert_array_equal(one.values[name], other.values[name])
        np.testing.assert_array_equal(one.errors[name], other.errors[name])


def test_no_cell_is_asked_twice_for_the_same(asks):
    asked = [(ask.size, cell) for ask in asks for cell in ask.cells]
    assert len(asked) == len(set(asked))


def test_without_a_tolerance_every_cell_is_sampled_and_audited_once(plane):
    filled = plane.run(tolerance=None)
    assert [ask.purpose for ask in plane.asks] == ["grid", "sample", "audit"]
    assert not (filled.status == 2).any()
    assert filled.attrs["n_audit"] == 59
    assert "tolerance" not in filled.attrs
    assert np.sqrt(np.mean(plane.errors(filled) ** 2)) == pytest.approx(filled.attrs["audited_rms"], rel=0.7)


def test_few_examples_are_all_taken():
    coords = grid(15, 15)
    loss, right = examples(coords, n=300)
    world = World(coords, {"train": {"loss": loss, "accuracy": right}})
    filled = world.run()
    assert all(ask.size == 0 for ask in world.asks)
    assert not (filled.status == 3).any()


def test_what_examples_count_is_kept():
    coords = grid(25, 25)
    loss, _ = examples(coords)
    weights = {"train": np.random.default_rng(5).integers(1, 30, N).astype(float)}
    world = World(coords, {"train": {"loss": loss}}, weights)
    assert np.percentile(world.errors(world.run()), 95) < 0.05


@pytest.mark.parametrize("shape", [(61,), (9, 31), (9, 9, 9)])
def test_lines_oblong_planes_and_volumes(shape):
    coords = grid(*shape)
    loss, right = examples(coords, n=1500)
    world = World(coords, {"train": {"loss": loss, "accuracy": right}})
    filled = world.run()
    assert np.percentile(world.errors(filled), 95) < 0.05


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_cells_are_computed_and_kept(value):
    coords = grid(25, 25)
    loss, _ = examples(coords)
    alpha, beta = np.meshgrid(*coords.values(), indexing="ij")
    broken = ((alpha > 0.55) & (beta > 0.3)).ravel()
    loss[broken, ::3] = value  # of some examples, as an overflow
    world = World(coords, {"train": {"loss": loss}})
    filled = world.run()
    np.testing.assert_array_equal(filled.values["loss"][0, broken], value)
    assert (filled.status[broken] == 1).all()
    with np.errstate(invalid="ignore"):
        assert np.percentile(world.errors(filled)[0, ~broken], 95) < 0.05


def test_losses_at_and_below_zero_are_no_trouble():
    coords = grid(25, 25)
    loss, _ = examples(coords)
    shifted = loss - loss.mean(axis=1).min() - 0.3
    world = World(coords, {"train": {"loss": shifted}})
    filled = world.run(tolerance=0.02)
    assert np.abs(filled.values["loss"] - world.truth["loss"]).max() < 0.04 * np.ptp(world.truth["loss"])


def test_a_loss_of_zero_everywhere_is_zero():
    coords = grid(25, 25)
    world = World(coords, {"train": {"loss": np.zeros((625, 1000))}})
    assert (world.run().values["loss"] == 0).all()
