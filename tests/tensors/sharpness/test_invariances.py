"""The table of invariances: every cell is checked, both ways. The docs show the same table.

A rescaling leaves the network's function as it is. Where the table says yes, the measure must not move; where it says
no, it must move, by more than 2 %, or the table would promise too little.
"""

import copy

import pytest
import torch
from torch import nn

from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.sharpness.flatness import relative_flatness
from lltoolkit.tensors.sharpness.registry import MEASURES
from tests.models import seeded

RESCALINGS = ("layers", "one filter", "filter before batch norm", "query against key")
# Whether a value stays as it is under each of the rescalings, in their order.
INVARIANT = {
    "lambda_max": (False, False, False, False),
    "trace": (False, False, False, False),
    "filter_curvature": (True, False, True, True),
    "volume_epsilon": (True, False, True, True),
    "keskar_epsilon": (False, False, False, False),
    "sam": (False, False, False, False),
    "asam": (True, True, True, True),
    "sam_logit_normalized": (False, False, False, False),
    "asam_logit_normalized": (True, True, True, True),
    "average_perturbation": (False, False, False, False),
    "average_perturbation_adaptive": (True, True, True, True),
    "relative_flatness": (True, False, True, True),
    "fisher_rao": (True, True, True, True),
    "weight_norm": (False, False, False, False),
    "distance_from_init": (False, False, False, False),
}
BY = 10.0
OPTIONS = {
    "lambda_max": {"tol": 1e-6},
    "trace": {"n_probes": 50},
    "filter_curvature": {"n_seeds": 10},
    "volume_epsilon": {"n_seeds": 3, "r_max": 8.0, "eps": 0.3, "tol": 1e-8},
    "keskar_epsilon": {"eps": 0.01},
}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)
        nn.init.normal_(self.attention.in_proj_weight)
        nn.init.normal_(self.attention.in_proj_bias)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def relu_network():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))


def batch_norm_network():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 3)
    )
    for _ in range(20):  # statistics of some data
        model(torch.randn(16, 1, 4, 4))
    nn.init.uniform_(model[1].weight, 0.5, 1.5)
    nn.init.normal_(model[1].bias)
    return model


NETWORKS = {
    "layers": (relu_network, (3,)),
    "one filter": (relu_network, (3,)),
    "filter before batch norm": (batch_norm_network, (1, 4, 4)),
    "query against key": (Attention, (5, 4)),
}


@torch.no_grad()
def rescaled(model, rescaling):
    model = copy.deepcopy(model)
    if rescaling in ("layers", "one filter"):
        rows = slice(None) if rescaling == "layers" else slice(0, 1)
        model[0].weight[rows] *= BY
        model[0].bias[rows] *= BY
        model[2].weight[:, rows] /= BY
    elif rescaling == "filter before batch norm":
        norm = model[1]
        model[0].weight[0] *= BY
        norm.running_mean[0] *= BY
        norm.running_var[0] = BY**2 * (norm.running_var[0] + norm.eps) - norm.eps
    else:
        for tensor in (model.attention.in_proj_weight, model.attention.in_proj_bias):
            tensor[:4] *= BY
            tensor[4:8] /= BY
    return model


def pair(rescaling):
    """An objective, the same function with its weights rescaled, and the weights that training began with."""
    make, shape = NETWORKS[rescaling]
    model, x, y = seeded(lambda: (make(), torch.randn(24, *shape), torch.randint(3, (24,))), 4)
    model = model.double().eval()
    initial = {name: 0.5 * tensor.detach() for name, tensor in model.named_parameters()}
    with torch.no_grad():  # as if trained a little: from a random network the loss may only fall
        logits = model(x.double())
        y = torch.where(torch.arange(24) < 20, logits.argmax(1), y)
    two = [Objective(m, (x, y), dtype="float64") for m in (model, rescaled(model, rescaling))]
    return *two, initial


@pytest.fixture(scope="module", params=RESCALINGS)
def rescaling(request):
    return request.param, pair(request.param)


def test_the_table_names_every_measure():
    assert list(INVARIANT) == list(MEASURES)
    assert {len(row) for row in INVARIANT.values()} == {len(RESCALINGS)}


@pytest.mark.parametrize("rescaling", RESCALINGS)
def test_a_rescaling_leaves_the_function(rescaling):
    before, after, _ = pair(rescaling)
    assert after.at_minimizer()["train", "loss"] == pytest.approx(before.at_minimizer()["train", "loss"], rel=1e-12)
    assert before.theta_sha256 != after.theta_sha256


@pytest.mark.parametrize("name", INVARIANT)
def test_cell(name, rescaling):
    which, (before, after, initial) = rescaling
    measure = MEASURES[name]
    values = [
        measure(objective, split="train", initial=initial, seed=1, **OPTIONS.get(name, {}))
        for objective in (before, after)
    ]
    assert not values[0].censored
    change = abs(values[1].value - values[0].value) / abs(values[0].value)
    if INVARIANT[name][RESCALINGS.index(which)]:
        assert change < 1e-6
    else:
        assert change > 0.02


def test_rows_of_the_layer_itself_may_be_rescaled_under_relative_flatness():
    # The cell says no of a column of W; a row against the layer behind leaves it.
    before, after, _ = pair("one filter")
    values = [relative_flatness(objective, layer=r"^0\.weight").value for objective in (before, after)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)
