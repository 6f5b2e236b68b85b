"""Thresholds of stability against torch's own optimizers, run, and against the spectral radius of their update."""

import math

import numpy as np
import pytest
import torch

from lltoolkit.tensors.stability import stability_threshold, threshold_of

MOMENTA = [0.1, 0.5, 0.9]
CASES = [
    {"optimizer": "sgd", "lr": 0.1},
    {"optimizer": "sgd", "lr": 0.3, "weight_decay": 0.7},
    *[{"optimizer": "sgd", "lr": 0.1, "momentum": b} for b in MOMENTA],
    *[{"optimizer": "sgd", "lr": 0.02, "momentum": b, "nesterov": True} for b in MOMENTA],
    {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.5},
    {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.5},
    *[{"optimizer": "adam", "lr": 1e-3, "betas": (b, 0.999)} for b in [0.0, 0.9]],
    {"optimizer": "adam", "lr": 0.01, "betas": (0.9, 0.95)},
    *[{"optimizer": "adamw", "lr": 0.01, "betas": (b, 0.999), "weight_decay": 5.0} for b in [0.0, 0.9]],
]
KINDS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def name_of(case):
    return "-".join(f"{value}" for value in case.values())


def growth(case, sharpness):
    """Train the weight of a parabola with torch's optimizer and tell how much it grows from step 100 to step 250."""
    # Adam: beside an eps of 1 the square root of v is nothing at such weights, so the preconditioner stands still at 1.
    # Its first steps are longer, by 1 / (1 - beta1^t); they are over at step 100.
    options = {key: value for key, value in case.items() if key != "optimizer"}
    if case["optimizer"] != "sgd":
        options = {"weight_decay": 0.0, **options, "eps": 1.0}
    weight = torch.tensor([1e-100], dtype=torch.float64, requires_grad=True)
    optimizer = KINDS[case["optimizer"]]([weight], **options)
    sizes = []
    for _ in range(250):
        optimizer.zero_grad()
        (0.5 * sharpness * weight**2).sum().backward()
        optimizer.step()
        sizes.append(abs(weight.item()))
    return max(sizes[-20:]) / max(sizes[80:100])


def update_of(case, sharpness):
    """The update of (weight, buffer) as a matrix, written down from the documentation of torch's optimizers."""
    lr, decay = case["lr"], case.get("weight_decay", 0.0)
    if case["optimizer"] == "sgd":
        b, h = case.get("momentum", 0.0), sharpness + decay
        buffer = np.array([h, b])  # the new buffer out of (weight, buffer)
        step = np.array([h, 0.0]) + b * buffer if case.get("nesterov") else buffer
        return np.array([np.array([1.0, 0.0]) - lr * step, buffer])
    b = case["betas"][0]
    mean = np.array([(1 - b) * sharpness, b])
    return np.array([np.array([1.0 - lr * decay, 0.0]) - lr * mean, mean])


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_torchs_optimizer_converges_just_below_and_diverges_just_above(case):
    threshold = stability_threshold(**case)
    assert growth(case, 0.95 * threshold) < 0.9
    assert growth(case, 1.05 * threshold) > 1.1


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_update_has_spectral_radius_1_at_the_threshold_and_at_no_smaller_sharpness(case):
    threshold = stability_threshold(**case)

    def radius(sharpness):
        return np.abs(np.linalg.eigvals(update_of(case, sharpness))).max()

    assert radius(threshold) == pytest.approx(1, abs=1e-9)
    assert radius(threshold * (1 + 1e-6)) > 1
    assert max(radius(share * threshold) for share in np.linspace(0.001, 1 - 1e-6, 500)) < 1


def test_the_known_numbers():
    assert stability_threshold(lr=0.01) == 200
    assert stability_threshold(optimizer="adam", lr=1.0) == pytest.approx(38)
    assert stability_threshold(lr=1, momentum=0.9) == pytest.approx(3.8)
    assert stability_threshold(lr=1, momentum=0.9, nesterov=True) == pytest.approx(3.8 / 2.8)
    assert stability_threshold(lr=1, weight_decay=3) < 0  # the decay alone overshoots


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.02])
def test_a_record_of_the_zoo_has_the_threshold_of_the_optimizer_that_the_zoo_builds(optimizer, momentum, decay):
    from lltoolkit.zoo.recipe import build_optimizer

    config = {"optimizer": optimizer, "lr": 0.05, "momentum": momentum, "weight_decay": decay, "batch_size": 64}
    built = build_optimizer(torch.nn.Linear(1, 1), config)
    group = built.param_groups[0]
    options = {key: group[key] for key in ("momentum", "nesterov", "betas") if key in group}
    found = threshold_of(config, n_examples=64)
    assert isinstance(built, KINDS[optimizer])
    assert found.value == stability_threshold(optimizer=optimizer, lr=0.05, weight_decay=decay, **options)
    assert found.hessian == ("euclidean" if optimizer == "sgd" else "preconditioned")
    assert f"= {found.value:.4g} at lr=0.05" in found.text
    assert found.text.endswith("; full batches")


def test_a_record_tells_where_its_threshold_does_not_hold():
    config = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "batch_size": 128}
    assert "no statement on this training" in threshold_of(config, n_examples=1437).text
    assert "full batches only" in threshold_of(config).text
    assert threshold_of(config, lr=0.01).value == pytest.approx(10 * threshold_of(config).value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lr": 0}, "lr=0: give a finite number above 0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"lr": "0.1"}, "lr='0.1'"),
        ({"lr": 1, "momentum": 1}, r"momentum=1: give a number in \[0, 1\)"),
        ({"lr": 1, "nesterov": True}, "which is 0"),
        ({"lr": 1, "weight_decay": -1}, "weight_decay=-1"),
        ({"lr": 1, "optimizer": "adm"}, "Did you mean 'adam'"),
        ({"lr": 1, "optimizer": "adam", "momentum": 0.9}, "adam takes betas"),
        ({"lr": 1, "optimizer": "adam", "betas": 0.9}, "give two numbers"),
        ({"lr": 1, "optimizer": "adam", "betas": (1.0, 0.9)}, "betas=1.0"),
    ],
)
def test_bad_options_are_told(options, told):
    with pytest.raises(ValueError, match=told):
        stability_threshold(**options)


def test_a_record_without_an_optimizer_is_told():
    with pytest.raises(ValueError, match=r"does not say its optimizer and lr; it has every.*stability_threshold"):
        threshold_of({"every": "epoch"})
