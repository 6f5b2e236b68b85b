"""Hessian-vector products against differences of a plain float64 loss, and against a dense Hessian."""

import copy
import math
from contextlib import suppress

import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import nn
from torch.nn import functional

from lltoolkit.tensors.hessian import Hessian, choose_variables
from lltoolkit.tensors.lanczos import extreme_eigenvalues
from lltoolkit.tensors.objective import Objective
from lltoolkit.tensors.params import filter_norms
from tests.models import BY_NAME, seeded

STEP = 1e-4


def smooth(seed: int = 0) -> nn.Module:
    make = lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()  # noqa: E731
    return seeded(make, seed)


def examples(n: int = 11):
    return seeded(lambda: (torch.randn(n, 3).double(), torch.randint(3, (n,))), 1)


def dense(model: nn.Module, names, theta, x, y) -> torch.Tensor:
    """The Hessian of the mean cross-entropy, row by row, with no code of ours."""

    def loss(*weights):
        moved = dict(zip(names, weights, strict=True))
        return functional.cross_entropy(torch.func.functional_call(model, moved, (x,)), y)

    weights = tuple(theta[name] for name in names)
    blocks = torch.autograd.functional.hessian(loss, weights)
    rows = [
        torch.cat([block.reshape(w.numel(), -1) for block in row], 1) for w, row in zip(weights, blocks, strict=True)
    ]
    return torch.cat(rows)


def as_matrix(point, n: int) -> torch.Tensor:
    return torch.stack([point(row) for row in torch.eye(n, dtype=torch.float64)])


def at_distance(model: nn.Module, theta, direction, distance: float) -> nn.Module:
    moved = copy.deepcopy(model).double()
    parameters = dict(moved.named_parameters())
    with torch.no_grad():
        for name, step in direction.items():
            parameters[name].copy_(theta[name] + distance * step)
    return moved


def test_curvature_along_a_direction_is_a_second_difference_of_the_plain_loss(case):
    model, data = case.model(), case.data()
    objective = Objective(model, data, dtype="float64", batch_size=4, **case.options)
    hessian = Hessian(objective)
    draw = torch.Generator().manual_seed(0)
    with hessian.at() as point:
        for _ in range(2):
            vector = torch.randn(hessian.n, generator=draw, dtype=torch.float64) / hessian.n**0.5
            curvature = float(vector @ point(vector))
            direction = hessian.unflatten(vector)
            before, here, after = (
                case.plain(at_distance(model, objective.theta, direction, distance), {"train": data["train"]})[
                    "train", "loss"
                ]
                for distance in (-STEP, 0.0, STEP)
            )
            assert curvature == pytest.approx((after - 2 * here + before) / STEP**2, rel=1e-4, abs=1e-6)
            assert float(vector @ point.gradient) == pytest.approx((after - before) / (2 * STEP), rel=1e-5, abs=1e-8)
        assert point.loss == pytest.approx(here, rel=1e-12)


def test_away_from_the_minimizer_it_is_the_dense_hessian():
    model, (x, y) = smooth(), examples()
    objective = Objective(model, (x, y), dtype="float64", batch_size=4)
    hessian = Hessian(objective)
    theta = {name: tensor + 0.3 for name, tensor in objective.theta.items()}
    with hessian.at(theta) as point:
        found = as_matrix(point, hessian.n)
    torch.testing.assert_close(found, dense(model, hessian.names, theta, x, y), rtol=1e-10, atol=1e-13)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of what curvlinops imports
def test_products_and_ends_are_those_of_curvlinops_and_eigsh():
    from curvlinops import HessianLinearOperator

    case = BY_NAME["cnn_batchnorm"]
    model, (x, y) = case.model(), case.data(30)["train"]
    objective = Objective(model, (x, y), batch_size=8)
    hessian = Hessian(objective)
    theirs = copy.deepcopy(model).eval()
    operator = HessianLinearOperator(
        theirs,
        nn.CrossEntropyLoss(),
        list(theirs.parameters()),
        [(x[:20], y[:20]), (x[20:], y[20:])],
        check_deterministic=False,
    )
    vector = torch.linspace(-1, 1, hessian.n)
    with hessian.at() as point:
        torch.testing.assert_close(point(vector), operator @ vector, rtol=1e-4, atol=1e-6)
        found = extreme_eigenvalues(point, torch.randn(hessian.n, generator=torch.Generator().manual_seed(0)), tol=1e-4)
    ends = [eigsh(operator.to_scipy(), k=1, which=which, tol=1e-5)[0][0] for which in ("SA", "LA")]
    assert found.eig_min == pytest.approx(ends[0], abs=1e-3 * ends[1])
    assert found.eig_max == pytest.approx(ends[1], rel=1e-3)


@pytest.mark.parametrize("memory", [0, 1500])
def test_what_is_kept_shows_in_no_bit(memory):
    objective = Objective(smooth(), examples(), dtype="float64", batch_size=2)
    vector = torch.arange(31.0, dtype=torch.float64)
    with Hessian(objective).at() as kept:
        assert kept.kept_share == 1
        expected = kept(vector)
    with Hessian(objective, memory=memory).at() as rebuilt:
        assert 0 < rebuilt.kept_share < 1 if memory else rebuilt.kept_share == 0
        assert torch.equal(rebuilt(vector), expected)


def test_a_batch_is_never_larger_than_what_is_free(monkeypatch):
    objective = Objective(smooth(), examples(), dtype="float64")
    vector = torch.arange(31.0, dtype=torch.float64)
    with Hessian(objective).at() as point:
        expected = point(vector)
    monkeypatch.setattr("lltoolkit.tensors.hessian.available_memory", lambda _: 2000)
    hessian = Hessian(objective)
    with hessian.at() as point:
        assert 0 < point.kept_share < 1
        torch.testing.assert_close(point(vector), expected, rtol=1e-12, atol=1e-14)
    assert hessian.batch_size < 11 == objective.n_examples["train"]  # which whoever keeps results writes down


def test_memory_that_runs_out_gives_every_graph_back(monkeypatch):
    objective = Objective(smooth(), examples(), dtype="float64", batch_size=2)
    vector = torch.arange(31.0, dtype=torch.float64)
    with Hessian(objective).at() as point:
        expected = point(vector)
    hessian = Hessian(objective)
    with hessian.at():  # the first point also measures its graph
        pass
    true, calls = hessian._differentiate, []

    def runs_out(batch, *, again=True):
        calls.append(again)
        if again and len(calls) == 4:
            raise MemoryError
        return true(batch, again=again)

    monkeypatch.setattr(hessian, "_differentiate", runs_out)
    with hessian.at() as point:
        assert point.kept_share == 0
        monkeypatch.setattr(hessian, "_differentiate", true)
        assert torch.equal(point(vector), expected)


def test_weights_alone_are_a_block_of_the_whole():
    model, (x, y) = smooth(), examples()
    objective = Objective(model, (x, y), dtype="float64")
    hessian = Hessian(objective, parameters="weights")
    assert hessian.names == ("0.weight", "2.weight")
    with hessian.at() as point:
        found = as_matrix(point, hessian.n)
    torch.testing.assert_close(found, dense(model, hessian.names, objective.theta, x, y), rtol=1e-10, atol=1e-13)


def test_parameters_by_expression_and_by_function():
    objective = Objective(smooth(), examples(), dtype="float64", parameters="weight|2.bias")
    assert choose_variables(objective, "bias") == ["2.bias"]
    assert choose_variables(objective, lambda name, _: name.startswith("0")) == ["0.weight"]
    with pytest.raises(ValueError, match="selects none"):
        choose_variables(objective, r"^0\.bias$")


def test_filter_metric_scales_each_filter_by_the_size_of_its_entries():
    model, (x, y) = smooth(), examples()
    objective = Objective(model, (x, y), dtype="float64")
    hessian = Hessian(objective, metric="filter")
    with hessian.at() as point:
        found = as_matrix(point, hessian.n)
        gradient = point.gradient
    scale = torch.cat(
        [
            (filter_norms(objective.theta[name]) / objective.theta[name].shape[1] ** 0.5)
            .expand(objective.theta[name].shape)
            .flatten()
            for name in ("0.weight", "2.weight")
        ]
    )
    plain = dense(model, hessian.names, objective.theta, x, y)
    torch.testing.assert_close(found, scale[:, None] * plain * scale, rtol=1e-10, atol=1e-14)
    with Hessian(objective, parameters="weights").at() as point:
        torch.testing.assert_close(gradient, scale * point.gradient)


def test_filter_metric_without_any_filter_is_refused():
    objective = Objective(smooth(), examples(), dtype="float64", parameters="bias")
    with pytest.raises(ValueError, match="two or more axes"):
        Hessian(objective, metric="filter")


def test_some_examples_of_a_split():
    model, (x, y) = smooth(), examples()
    objective = Objective(model, (x, y), dtype="float64", batch_size=2)
    chosen = torch.tensor([1, 5, 8])
    part = Objective(model, (x[chosen], y[chosen]), dtype="float64")
    vector = torch.ones(31, dtype=torch.float64)
    with Hessian(objective, positions=chosen).at() as here, Hessian(part).at() as there:
        torch.testing.assert_close(here(vector), there(vector), rtol=1e-12, atol=1e-14)


def test_recomputed_statistics_are_constants():
    case = BY_NAME["cnn_batchnorm"]
    model, data = case.model(), case.data()
    objective = Objective(model, data, dtype="float64", buffers="recompute", batch_size=9)
    theta = {name: 1.1 * tensor for name, tensor in objective.theta.items()}
    hessian = Hessian(objective)
    # By hand: the statistics that training mode leaves behind, then an objective that freezes them.
    frozen = at_distance(model, theta, {name: 0 * tensor for name, tensor in theta.items()}, 0.0)
    frozen.norm.momentum = None
    frozen.norm.reset_running_stats()
    frozen.train()
    frozen(data["train"][0].double())
    other = Hessian(Objective(frozen.eval(), data, dtype="float64"))
    vector = torch.linspace(-1, 1, hessian.n, dtype=torch.float64)
    with hessian.at(theta) as here, other.at() as there:
        torch.testing.assert_close(here(vector), there(vector), rtol=1e-9, atol=1e-12)


def test_tied_weights_move_together():
    case = BY_NAME["transformer_tied"]
    objective = Objective(case.model(), case.data(), dtype="float64", **case.options)
    hessian = Hessian(objective, parameters="embedding|output")
    (name,) = hessian.names
    vector = torch.randn(hessian.n, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / hessian.n**0.5
    with hessian.at() as point:
        curvature = float(vector @ point(vector))
    theta, step = objective.theta, hessian.unflatten(vector)[name]
    before, here, after = (  # both of its places move
        objective.measure(theta | {name: theta[name] + distance * step})["train", "loss"]
        for distance in (-STEP, 0, STEP)
    )
    assert curvature == pytest.approx((after - 2 * here + before) / STEP**2, rel=1e-3, abs=1e-6)


def test_a_linear_loss_has_no_curvature():
    model = nn.Linear(2, 1)
    objective = Objective(model, (torch.ones(4, 2), torch.zeros(4)), loss=lambda output, _: output[:, 0], metrics=[])
    with Hessian(objective).at() as point:
        assert not point(torch.ones(3)).any()
        assert point.gradient.tolist() == [1.0, 1.0, 1.0]


class Rounded(torch.autograd.Function):
    """Knows its gradient, and no more."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient


class Once(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return Rounded.apply(self.layer(x).tanh())


class Distances(nn.Module):
    """Distances to prototypes in a norm that torch differentiates once."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return -torch.cdist(self.layer(x), torch.eye(3), p=3.0)


@pytest.mark.parametrize(("model", "name"), [(Once(), "Rounded"), (Distances(), "cdist")])
def test_an_operator_without_second_derivative_is_named(model, name):
    x, y = examples()
    objective = Objective(model, (x.float(), y))
    with pytest.raises(ValueError, match=name), Hessian(objective).at() as point:
        point(torch.ones(Hessian(objective).n))


def test_where_the_loss_is_nan_products_are_nan():
    objective = Objective(smooth(), examples(), dtype="float64")
    theta = {name: tensor * math.nan for name, tensor in objective.theta.items()}
    with Hessian(objective).at(theta) as point:
        assert math.isnan(point.loss)
        assert point(torch.ones(31, dtype=torch.float64)).isnan().all()
        found = extreme_eigenvalues(point, torch.ones(31, dtype=torch.float64))
    assert math.isnan(found.eig_max)
    assert not found.converged


def test_measuring_elsewhere_meanwhile_is_noticed():
    objective = Objective(smooth(), examples(), dtype="float64")
    with Hessian(objective).at() as point:
        objective.measure({name: 2 * tensor for name, tensor in objective.theta.items()})
        with pytest.raises(RuntimeError, match="weights are others"):
            point(torch.ones(31, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="closed"):
        point(torch.ones(31, dtype=torch.float64))


def settings() -> tuple[object, ...]:
    return (
        torch.backends.cudnn.enabled,
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
    )


@pytest.mark.parametrize("fault", [False, True])
def test_nothing_has_changed_afterwards(fault):
    case = BY_NAME["cnn_batchnorm"]
    objective = Objective(case.model(), case.data())
    before, set_before = objective.measure(objective.theta), settings()
    with suppress(KeyError), Hessian(objective).at() as point:
        assert not torch.backends.cudnn.enabled
        assert not torch.backends.mha.get_fastpath_enabled()
        point(torch.ones(Hessian(objective).n))
        if fault:
            raise KeyError
    assert objective.measure(objective.theta) == before
    assert not any(parameter.requires_grad for parameter in objective.network.model.parameters())
    assert settings() == set_before
    assert objective.lock.acquire(blocking=False)
    objective.lock.release()


class Keeps(nn.Module):
    """Keeps its activations in whatever is at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        hidden = self.layer(x).tanh()
        self.kept = [hidden, {"one": (hidden,)}]
        return hidden


def test_activations_that_a_model_keeps_hold_no_graph():
    x, y = examples()
    objective = Objective(Keeps(), (x.float(), y))
    with Hessian(objective).at() as point:
        point(torch.ones(12))
    kept = objective.network.model.kept
    assert kept[0].grad_fn is None
    assert kept[1]["one"][0].grad_fn is None
    objective.moved_to(objective.theta)  # copies the model, which a graph would forbid


def test_memory_that_runs_out_at_the_first_batch_halves_it(monkeypatch):
    objective = Objective(smooth(), examples(), dtype="float64", batch_size=8)
    vector = torch.arange(31.0, dtype=torch.float64)
    with Hessian(objective).at() as point:
        expected = point(vector)
    hessian = Hessian(objective)
    with hessian.at():
        pass
    true = hessian._differentiate

    def runs_out(batch, *, again=True):
        if batch.size > 3:
            raise MemoryError
        return true(batch, again=again)

    monkeypatch.setattr(hessian, "_differentiate", runs_out)
    with hessian.at() as point:
        assert hessian.batch_size == 2
        torch.testing.assert_close(point(vector), expected, rtol=1e-12, atol=1e-14)
    assert objective.batch_size == 8


def test_memory_that_runs_out_in_a_product_gives_the_graphs_back(monkeypatch):
    objective = Objective(smooth(), examples(), dtype="float64", batch_size=4)
    vector = torch.arange(31.0, dtype=torch.float64)
    hessian = Hessian(objective)
    with hessian.at() as point:
        expected = point(vector)
    with hessian.at() as point:
        true, calls = point._differentiate_again, []

        def runs_out(graph, parts, *, keep):
            calls.append(keep)
            if len(calls) == 2:
                raise MemoryError
            return true(graph, parts, keep=keep)

        monkeypatch.setattr(point, "_differentiate_again", runs_out)
        assert torch.equal(point(vector), expected)
        assert not point._kept


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"parameters": 3}, "parameters=3"),
        ({"positions": torch.tensor([], dtype=torch.int64)}, "positions is empty"),
        ({"metric": "fliter"}, "metric"),
        ({"split": "tran"}, "split"),
    ],
)
def test_bad_options_are_told(options, word):
    objective = Objective(smooth(), examples(), dtype="float64")
    with pytest.raises(ValueError, match=word):
        Hessian(objective, **options)
    with pytest.raises(ValueError, match="Objective"):
        Hessian(smooth())
    with Hessian(objective).at() as point, pytest.raises(ValueError, match="shape"):
        point(torch.ones(3))
