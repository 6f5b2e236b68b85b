"""Models whose derivatives are not those of their loss are told apart from models whose are."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lltoolkit.tensors.derivative_check import check_derivatives
from lltoolkit.tensors.differentiable import kinks_of
from lltoolkit.tensors.hessian import Hessian
from lltoolkit.tensors.objective import Objective
from tests.models import seeded

DATA = seeded(lambda: (torch.randn(13, 4), torch.randint(3, (13,))), 0)


class Smooth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def hidden(self, x):
        return self.first(x).tanh()

    def forward(self, x):
        return self.second(self.hidden(x))


class Detached(Smooth):
    def forward(self, x):
        hidden = self.hidden(x)
        return self.second(hidden + 8 * hidden.detach() * hidden)


class Square(torch.autograd.Function):
    """A backward that is right once, and constant for whoever differentiates it again."""

    @staticmethod
    def forward(ctx, x):
        ctx.kept = x.detach()
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.kept * gradient


class OwnBackward(Smooth):
    def forward(self, x):
        return self.second(Square.apply(self.hidden(x)))


class WithoutGradients(Smooth):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


def hessian_of(kind, dtype="float64") -> Hessian:
    return Hessian(Objective(seeded(kind, 1), DATA, dtype=dtype))


def test_models_in_torch_operations_raise_no_doubt(case):
    objective = Objective(case.model(), case.data(), **case.options)
    assert check_derivatives(Hessian(objective)) == []
    assert check_derivatives(Hessian(objective, metric="filter")) == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kind", "word"), [(Detached, "detach"), (OwnBackward, "backward of its own")])
def test_what_is_wrong_is_told(kind, word, dtype, caplog):
    assert check_derivatives(hessian_of(Smooth, dtype)) == []
    assert any(word in doubt for doubt in check_derivatives(hessian_of(kind, dtype)))
    assert "doubtful" in caplog.text


def test_torchs_weight_norm_is_doubted():
    make = lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))  # noqa: E731
    hessian = Hessian(Objective(seeded(make, 1), DATA, dtype="float64"))
    a, b = seeded(lambda: torch.randn(2, hessian.n, dtype=torch.float64), 2)
    with hessian.at() as point:
        symmetric = abs(float(a @ point(b) - b @ point(a))) < 1e-9
    assert bool(check_derivatives(hessian)) == (not symmetric)  # a later torch may have mended it


def test_no_gradient_at_all_is_an_error():
    with pytest.raises(ValueError, match="no_grad"), hessian_of(WithoutGradients).at():
        pass


def test_kinks_are_named():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    assert kinks_of(functional.max_pool2d(functional.relu(x), 2).sum()) == ["MaxPool2D", "Relu"]
    assert kinks_of(x.tanh().square().mean()) == []
