import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lltoolkit.plots.weights import plot_weights


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return {"conv": rng.normal(0, 0.1, (8, 3, 3, 3)), "fc": rng.normal(0, 0.1, (10, 50)), "bias": np.full(900, 7.0)}


def stairs(ax):
    return [patch.get_data() for patch in ax.patches]


def test_heights_are_numpys_histogram(weights, ax):
    plot_weights({"a": weights}, bins=20, range=(-1, 1), ax=ax)
    ((density, edges, _),) = stairs(ax)
    every = np.concatenate([weights["conv"].ravel(), weights["fc"].ravel()])
    expected, _ = np.histogram(every, 20, (-1, 1), density=True)
    np.testing.assert_allclose(density, expected)
    np.testing.assert_allclose(edges, np.linspace(-1, 1, 21))
    assert ax.get_xlabel() == "weight"
    (text,) = ax.get_legend().get_texts()
    assert text.get_text() == f"a (s.d. {every.std():.3g}, norm {np.linalg.norm(every):.3g})"


def test_what_is_outside_is_told_and_counted_in(ax):
    values = np.array([[0.1] * 90 + [5.0] * 10])
    plot_weights({"a": {"w": values}, "b": {"w": values[:, :91]}}, bins=4, range=(-1, 1), ax=ax)
    (density, edges, _), _ = stairs(ax)
    assert (density * np.diff(edges)).sum() == pytest.approx(0.9)
    assert "up to 10 % of a model's weights are outside" in ax.get_xlabel()


def test_default_range_holds_the_widest(weights, ax):
    wide = {"w": 10 * weights["fc"]}
    plot_weights({"narrow": weights, "wide": wide}, ax=ax)
    first, last = ax.get_xlim()
    assert first == pytest.approx(-last)
    assert last == pytest.approx(np.quantile(np.abs(wide["w"]), 0.999))
    ax.figure.draw_without_rendering()


def test_every_holder_of_weights_draws_the_same(ax):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Linear(4, 5)).bfloat16()
    state = dict(model.named_parameters())
    objective = SimpleNamespace(theta={name: tensor.detach().clone() for name, tensor in state.items()})
    arrays = {name: tensor.detach().double().numpy() for name, tensor in state.items()}
    plot_weights({"module": model, "objective": objective, "state": model.state_dict(), "arrays": arrays}, ax=ax)
    first, *others = stairs(ax)
    for other in others:
        np.testing.assert_array_equal(other.values, first.values)
    assert len({text.get_text().split(" (")[1] for text in ax.get_legend().get_texts()}) == 1


def test_told_apart_without_colour(weights, ax):
    plot_weights(dict.fromkeys("abcde", weights), log=True, ax=ax)
    assert len({str(patch.get_linestyle()) for patch in ax.patches}) == 5
    assert len({patch.get_edgecolor() for patch in ax.patches}) == 5
    assert ax.get_yscale() == "log"
    ax.figure.draw_without_rendering()


def test_broken_weights_are_counted(ax):
    plot_weights({"a": {"w": np.array([[1.0, np.nan, np.inf, -1.0]])}}, ax=ax)
    assert ax.get_legend().get_texts()[0].get_text() == "a (s.d. 1, norm 1.41), 2 NaN or inf"


@pytest.mark.parametrize("values", [np.zeros((3, 3)), np.full((2, 2), np.nan)])
def test_nothing_to_see(values, ax):
    with np.errstate(all="raise"):
        plot_weights({"a": {"w": values}}, ax=ax)
    ax.figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("models", "options", "error", "words"),
    [
        ({}, {}, ValueError, "models is empty"),
        ([1], {}, TypeError, "give {'name': model}"),
        ({"conv.weight": np.ones((2, 2))}, {}, TypeError, "one level deeper"),
        ({"a": {"bias": np.ones(3)}}, {}, ValueError, r"models\['a'\] has no tensor with two"),
        ({"a": {"w": np.ones((2, 2))}}, {"bins": 0}, ValueError, "bins=0"),
        ({"a": {"w": np.ones((2, 2))}}, {"range": (1, 1)}, ValueError, "the smaller one first"),
        ({"a": {"w": np.ones((2, 2))}}, {"range": (0, np.inf)}, ValueError, "two finite numbers"),
    ],
)
def test_bad_input(models, options, error, words, ax):
    with pytest.raises(error, match=words):
        plot_weights(models, **options, ax=ax)


def test_no_torch_needed():
    code = """
import sys
class NoTorch:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "torch":
            raise ImportError(name)
sys.meta_path.insert(0, NoTorch())
import numpy as np
from matplotlib.figure import Figure
from lltoolkit.plots import sharpness, spectrum
from lltoolkit.plots.weights import plot_weights
plot_weights({"a": {"w": np.eye(3)}}, ax=Figure().subplots())
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
