"""The rules of data/optimizer-paths, and that what is shipped follows from them."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

STUDY = Path(__file__).parents[1] / "data" / "optimizer-paths"
pytestmark = pytest.mark.skipif(not STUDY.exists(), reason="the study is in the repository, not in the package")


@pytest.fixture(scope="module")
def judge():
    spec = importlib.util.spec_from_file_location("paths_judge", STUDY / "judge.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def over(axis_a, axis_b, function):
    loss = function(axis_a[:, None], axis_b[None, :])[None]
    coords = {"split": ["train"], "alpha": axis_a, "beta": axis_b}
    return xr.Dataset({"loss": (("split", "alpha", "beta"), loss)}, coords=coords)


def path_of(points, rates=None):
    rates = np.full(len(points), 0.1) if rates is None else rates
    columns = {
        name: ("step", np.array(values, float))
        for name, values in zip(("alpha", "beta"), zip(*points, strict=True), strict=True)
    }
    return xr.Dataset(columns, coords={"step": np.arange(len(points)), "learning_rate": ("step", rates)})


def test_alignment_is_1_across_the_contours_of_a_bowl_and_0_along_them(judge):
    axis = np.linspace(-2, 2, 41)
    bowl = over(axis, axis, lambda a, b: np.exp(a**2 + b**2))
    inwards = path_of([(1.0, 1.0), (0.6, 0.6), (0.3, 0.3)])
    np.testing.assert_allclose(judge.alignment(inwards, bowl), 1, atol=1e-6)
    angles = np.linspace(0, 1, 5)
    around = path_of(list(zip(np.cos(angles), np.sin(angles), strict=True)))
    np.testing.assert_allclose(judge.alignment(around, bowl), 0, atol=1e-6)


def test_the_first_drop_is_found_between_epochs(judge):
    rates = [0.1, 0.1, 0.1, 0.1, 0.01, 0.01]  # of the initial weights, and of epochs 1 to 5
    assert judge.first_drop(path_of([(0, 0)] * 6, rates)) == 3


@pytest.mark.parametrize(
    ("shares", "verdict"), [([0.5] * 8, "agrees"), ([0.95] * 8, "disagrees"), ([0.5] * 6 + [0.95] * 2, "undecided")]
)
def test_the_share_of_two_components_is_judged_as_the_protocol_says(judge, shares, verdict):
    runs = {str(i): {"explained_variance": share, "explained_variance_null": 0.9} for i, share in enumerate(shares)}
    assert judge.low_dimension(runs)["verdict"] == verdict


def test_the_shipped_verdicts_follow_from_the_shipped_results(judge):
    results = STUDY / "results"
    told = json.loads((results / "verdicts.json").read_text())
    again = json.loads(json.dumps(judge.judge(results, list(told["vgg9"]))))
    assert again["claims"] == told["claims"]
    for name, numbers in told["vgg9"].items():
        assert again["vgg9"][name] == pytest.approx(numbers, rel=1e-9)
