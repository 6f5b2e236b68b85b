"""Directions: the scaling of Li et al. (2018) against a loop over filters, and what it leaves unchanged."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lltoolkit import Objective, compute_surface, interpolate, random_subspace
from lltoolkit.tensors.directions import hessian_subspace
from lltoolkit.tensors.params import dot
from tests.models import BY_NAME, seeded

MLP = BY_NAME["mlp"]
CNN = BY_NAME["cnn_batchnorm"]
POINTS = [(0.0, 0.0), (0.4, -0.7), (-1.0, 1.0)]


def filters(tensor):
    """Slices along axis 0 of a tensor with two or more axes; the whole of any other."""
    return list(tensor) if tensor.ndim >= 2 else [tensor]


def length(values):
    return math.sqrt(sum(float(value) ** 2 for value in values.flatten()))


def assert_parallel(a, b):
    """`a` is a positive multiple of `b`, entry by entry."""
    assert length(a / length(a) - b / length(b)) < 1e-6


# --- scaling, against a loop


@pytest.mark.parametrize("name", ["mlp", "cnn_batchnorm", "vgg_dropout", "lstm", "transformer_tied"])
def test_filter_normalization_equals_a_loop_over_filters(name):
    model = BY_NAME[name].model()
    plane = random_subspace(model, seed=3)
    raw = random_subspace(model, seed=3, normalize="none")
    for direction, drawn in zip(plane.directions, raw.directions, strict=True):
        for key, weights in plane.origin.items():
            for d, r, w in zip(filters(direction[key]), filters(drawn[key]), filters(weights), strict=True):
                if weights.ndim < 2:
                    assert length(d) == 0
                else:
                    assert length(d) == pytest.approx(length(w), rel=1e-6)
                    assert_parallel(d, r)


def test_layer_normalization_equals_a_loop_over_tensors():
    plane = random_subspace(CNN.model(), normalize="layer")
    raw = random_subspace(CNN.model(), normalize="none")
    for key, weights in plane.origin.items():
        if weights.ndim > 1:
            assert length(plane.directions[0][key]) == pytest.approx(length(weights), rel=1e-6)
            assert_parallel(plane.directions[0][key], raw.directions[0][key])


def test_weight_normalization_multiplies_entry_by_entry():
    plane = random_subspace(CNN.model(), normalize="weight", ignore="none")
    raw = random_subspace(CNN.model(), normalize="none", ignore="none")
    for key, weights in plane.origin.items():
        torch.testing.assert_close(plane.directions[1][key], raw.directions[1][key] * weights)


def test_raw_directions_are_standard_normal():
    model = seeded(lambda: nn.Linear(200, 100), 0)
    for direction in random_subspace(model, dims=3, normalize="none").directions:
        values = direction["weight"].double()
        assert float(values.mean()) == pytest.approx(0, abs=4 / math.sqrt(20000))
        assert float(values.var()) == pytest.approx(1, abs=4 * math.sqrt(2 / 20000))


@pytest.mark.parametrize("normalize", ["filter", "layer", "weight", "none"])
def test_ignore_says_what_biases_and_batch_norm_do(normalize):
    model = CNN.model()
    small = [name for name, parameter in model.named_parameters() if parameter.ndim < 2]
    assert small == ["norm.weight", "norm.bias", "head.bias"]
    stay, move, code = (
        random_subspace(model, normalize=normalize, ignore=ignore) for ignore in ("bias_bn", "none", "original_code")
    )
    for key in small:
        assert not stay.directions[0][key].any()
        assert torch.equal(code.directions[0][key], code.origin[key])
        assert torch.equal(code.directions[1][key], code.origin[key])
        assert move.directions[0][key].any()
        if normalize in ("filter", "layer"):
            assert length(move.directions[0][key]) == pytest.approx(length(move.origin[key]), rel=1e-6)
    for key in set(stay.origin) - set(small):
        assert torch.equal(stay.directions[0][key], move.directions[0][key])
        assert torch.equal(stay.directions[0][key], code.directions[0][key])


def test_a_filter_of_zeros_stays_where_it_is():
    model = MLP.model()
    with torch.no_grad():
        model[0].weight[2] = 0
    plane = random_subspace(model, ignore="none")
    for direction in plane.directions:
        assert not direction["0.weight"][2].any()
        assert all(tensor.isfinite().all() for tensor in direction.values())


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (0, 5), (5, 0)])
@pytest.mark.parametrize("orthogonalize", [False, True])
def test_odd_shapes_have_directions(shape, orthogonalize):
    model = nn.ParameterDict({"odd": torch.full(shape, 2.0), "w": torch.ones(4, 3)})
    plane = random_subspace(model, ignore="none", orthogonalize=orthogonalize)
    for direction in plane.directions:
        assert direction["odd"].shape == shape
        assert direction["odd"].isfinite().all()
    if math.prod(shape) == 1:
        assert abs(float(plane.directions[0]["odd"])) == pytest.approx(2)


# --- seeds


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@given(st.integers(-(2**40), 2**40), st.integers(1, 3))
def test_one_seed_gives_one_direction_whatever_was_drawn_before(seed, dims):
    model = MLP.model()
    first = random_subspace(model, seed=seed, dims=3)
    torch.rand(7)
    random_subspace(model, seed=seed + 1)
    again = random_subspace(model, seed=seed, dims=dims)
    for direction, known in zip(again.directions, first.directions, strict=False):
        assert same(direction, known)


def test_other_seeds_and_other_axes_give_other_directions():
    volumes = [random_subspace(MLP.model(), seed=seed, dims=3, normalize="none") for seed in range(4)]
    directions = [direction for volume in volumes for direction in volume.directions]
    assert len({volume.id for volume in volumes}) == 4
    for i, a in enumerate(directions):
        for b in directions[:i]:
            cosine = dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))
            assert abs(cosine) < 0.5  # 64 weights: standard deviation 0.125


def test_a_direction_does_not_depend_on_the_layers_beside_it():
    model = MLP.model()
    whole = random_subspace(model)
    part = random_subspace(Objective(model, MLP.data(), parameters=r"^2\."))
    assert set(part.origin) == {"2.weight", "2.bias"}
    assert torch.equal(whole.directions[0]["2.weight"], part.directions[0]["2.weight"])


def test_layers_of_one_shape_have_directions_of_their_own():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    direction = random_subspace(model, normalize="none").directions[0]
    assert not torch.isclose(direction["0.weight"], direction["1.weight"]).any()


def test_torchs_generator_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    random_subspace(MLP.model())
    assert torch.equal(torch.rand(1), expected)


def test_a_module_and_its_objective_have_the_same_subspace():
    model = CNN.model()
    assert random_subspace(model).id == random_subspace(Objective(model, CNN.data())).id


# --- orthogonalize


@pytest.mark.parametrize("normalize", ["filter", "layer", "none"])
@pytest.mark.parametrize("ignore", ["bias_bn", "none"])
def test_orthogonalized_directions_are_orthogonal_in_every_filter_and_keep_its_norm(normalize, ignore):
    plane = random_subspace(CNN.model(), dims=3, orthogonalize=True, normalize=normalize, ignore=ignore)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        a, b = plane.directions[i], plane.directions[j]
        assert dot(a, b) / math.sqrt(dot(a, a) * dot(b, b)) == pytest.approx(0, abs=1e-6)
    for key, weights in plane.origin.items():
        for place, weight_filter in enumerate(filters(weights)):
            parts = [filters(direction[key])[place].flatten().double() for direction in plane.directions]
            for i, j in ((0, 1), (0, 2), (1, 2)):
                assert float(parts[i] @ parts[j]) == pytest.approx(0, abs=1e-6 * max(1, length(weight_filter) ** 2))
            if normalize == "filter" and weights.ndim > 1:
                for part in parts:
                    assert length(part) == pytest.approx(length(weight_filter), rel=1e-6)


def test_a_filter_with_fewer_weights_than_directions_stays():
    model = nn.ParameterDict({"w": torch.ones(4, 1)})
    plane = random_subspace(model, dims=2, orthogonalize=True)
    assert plane.directions[0]["w"].all()
    assert not plane.directions[1]["w"].any()


@pytest.mark.parametrize("options", [{"normalize": "weight"}, {"ignore": "original_code"}])
def test_orthogonalize_is_refused_where_the_scaling_would_undo_it(options):
    with pytest.raises(ValueError, match=r"orthogonalize=True.*(weight|original_code)"):
        random_subspace(MLP.model(), orthogonalize=True, **options)


# --- tied weights


def test_a_tied_weight_moves_once():
    case = BY_NAME["transformer_tied"]
    model, data = case.model(), case.data()
    plane = random_subspace(model, seed=1)
    assert "output.weight" not in plane.origin
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter.add_(plane.directions[0][name], alpha=0.5)
    assert moved.output.weight is moved.embedding.weight
    measured = Objective(model, data, **case.options).measure(plane.at(0.5, 0.0))
    assert measured["train", "loss"] == pytest.approx(case.plain(moved, data)["train", "loss"], rel=1e-5)


# --- what the surface is invariant to (Notes of random_subspace)


def surface_of(model, case, **options):
    objective = Objective(model, case.data(), dtype="float64")
    plane = random_subspace(objective, seed=1, **options)
    grid = {"alpha": [-1.0, 0.0, 0.6], "beta": [-0.5, 0.8]}
    return compute_surface(objective, plane, coords=grid, progress=False)["loss"].values


def rescaled(model, change):
    model = copy.deepcopy(model)
    with torch.no_grad():
        change(model)
    return model


def test_scaling_a_relu_layer_up_and_the_next_down_leaves_the_filter_normalized_surface():
    def change(model):
        model[0].weight.mul_(10)
        model[0].bias.mul_(10)
        model[2].weight.div_(10)

    model = MLP.model()
    scaled = rescaled(model, change)
    # Biases stay, or move by their own norm: both keep the network's function at every cell.
    for ignore in ("bias_bn", "none"):
        torch.testing.assert_close(
            surface_of(scaled, MLP, ignore=ignore), surface_of(model, MLP, ignore=ignore), rtol=1e-6, atol=0
        )
    assert abs(surface_of(scaled, MLP, normalize="none") / surface_of(model, MLP, normalize="none") - 1).max() > 0.01


def test_scaling_one_filter_against_the_next_layers_column_changes_the_surface():
    def change(model):
        model[0].weight[1].mul_(10)
        model[0].bias[1].mul_(10)
        model[2].weight[:, 1].div_(10)

    model = MLP.model()
    scaled = rescaled(model, change)
    x = MLP.data()["train"][0]
    torch.testing.assert_close(scaled(x), model(x), rtol=1e-5, atol=1e-6)  # the same function at the minimizer
    assert abs(surface_of(scaled, MLP) / surface_of(model, MLP) - 1).max() > 0.01


def test_scaling_one_filter_before_batch_norm_with_its_statistics_leaves_the_surface():
    def change(model):
        model.conv.weight[1].mul_(10)
        model.norm.running_mean[1] *= 10
        model.norm.running_var[1] *= 100

    model = CNN.model()
    model.norm.eps = 0.0  # the law is exact without the guard against 0 / 0
    scaled = rescaled(model, change)
    torch.testing.assert_close(surface_of(scaled, CNN), surface_of(model, CNN), rtol=1e-6, atol=0)

    def weights_alone(model):
        model.conv.weight[1].mul_(10)

    assert abs(surface_of(rescaled(model, weights_alone), CNN) / surface_of(model, CNN) - 1).max() > 0.01


def test_the_scale_of_theta_scales_a_filter_normalized_direction():
    model = MLP.model()
    bigger = rescaled(model, lambda model: [parameter.mul_(4) for parameter in model.parameters()])
    small, large = random_subspace(model), random_subspace(bigger)
    for name in small.origin:
        torch.testing.assert_close(large.directions[0][name], 4 * small.directions[0][name], rtol=1e-6, atol=0)


# --- interpolation


def models(case, n=3):
    return [case.model(seed) for seed in range(n)]


@pytest.mark.parametrize("name", ["mlp", "cnn_batchnorm", "transformer_tied", "lstm"])
def test_the_ends_of_a_line_are_the_models_themselves(name):
    case = BY_NAME[name]
    a, b = models(case, 2)
    data = case.data()
    line = interpolate(a, b)
    for objective in (Objective(a, data, **case.options), Objective(b, data, buffers="frozen", **case.options)):
        grid = {"alpha": [0.0, 1.0]}
        surface = compute_surface(objective, line, coords=grid, progress=False)
        for place, model in enumerate((a, b)):
            own = Objective(model, data, **case.options).at_minimizer()
            plain = case.plain(model, data)
            for (split, metric), value in own.items():
                found = float(surface[metric].sel(split=split).isel(alpha=place))
                assert found == pytest.approx(value, rel=1e-5, abs=1e-7)
                assert found == pytest.approx(plain[split, metric], rel=1e-5, abs=1e-7)


def test_the_corners_of_a_plane_are_the_models_themselves():
    a, b, c = models(CNN)
    data = CNN.data()
    grid = {"alpha": [0.0, 1.0], "beta": [0.0, 1.0]}
    surface = compute_surface(Objective(a, data), interpolate(a, b, c), coords=grid, progress=False)
    for alpha, beta, model in ((0, 0, a), (1, 0, b), (0, 1, c)):
        own = Objective(model, data).at_minimizer()
        for (split, metric), value in own.items():
            assert float(surface[metric].sel(split=split, alpha=alpha, beta=beta)) == pytest.approx(value, rel=1e-5)


def test_a_line_moves_the_running_statistics_with_the_weights():
    a, b = models(CNN, 2)
    middle = copy.deepcopy(a)
    with torch.no_grad():
        for mine, other in zip(middle.parameters(), b.parameters(), strict=True):
            mine.lerp_(other, 0.5)
        middle.norm.running_mean.lerp_(b.norm.running_mean, 0.5)
        middle.norm.running_var.lerp_(b.norm.running_var, 0.5)
    measured = Objective(a, CNN.data()).measure(interpolate(a, b).at(0.5))
    for key, value in CNN.plain(middle, CNN.data()).items():
        assert measured[key] == pytest.approx(value, rel=1e-5, abs=1e-7)


def test_frozen_buffers_keep_the_statistics_of_a():
    a, b = models(CNN, 2)
    data = CNN.data()
    line = interpolate(a, b, buffers="frozen")
    grid = {"alpha": [0.0, 1.0]}
    surface = compute_surface(Objective(a, data), line, coords=grid, progress=False)["loss"].sel(split="train")
    b_with_statistics_of_a = copy.deepcopy(b)
    b_with_statistics_of_a.norm.load_state_dict(
        {k: v for k, v in a.norm.state_dict().items() if "running" in k}
        | {k: v for k, v in b.norm.state_dict().items() if "running" not in k}
    )
    assert float(surface[0]) == pytest.approx(CNN.plain(a, data)["train", "loss"], rel=1e-5)
    assert float(surface[1]) == pytest.approx(CNN.plain(b_with_statistics_of_a, data)["train", "loss"], rel=1e-5)
    assert float(surface[1]) != pytest.approx(CNN.plain(b, data)["train", "loss"], rel=1e-3)


def test_recomputed_buffers_on_a_line_equal_update_bn():
    a, b = models(CNN, 2)
    data = CNN.data()
    objective = Objective(a, data, buffers="recompute", batch_size=3)
    surface = compute_surface(objective, interpolate(a, b), coords={"alpha": [0.0, 1.0]}, progress=False)
    again = copy.deepcopy(b)
    torch.optim.swa_utils.update_bn(list(data["train"][0].split(3)), again)
    for split in ("train", "test"):
        found = float(surface["loss"].sel(split=split)[1])
        assert found == pytest.approx(CNN.plain(again, data)[split, "loss"], rel=1e-5)
    assert surface.attrs["buffers"] == "recompute"


def test_models_without_buffers_may_be_interpolated_under_any_policy():
    a, b = models(MLP, 2)
    surfaces = [
        compute_surface(Objective(a, MLP.data(), buffers=buffers), interpolate(a, b), resolution=3, progress=False)
        for buffers in ("frozen", "interpolate")
    ]
    assert (surfaces[0]["loss"].values == surfaces[1]["loss"].values).all()


def test_models_that_do_not_fit_are_refused_with_the_names():
    with pytest.raises(ValueError, match=r"model b does not fit model a \(missing: 0\.weight.*unknown: conv\.weight"):
        interpolate(MLP.model(), CNN.model())
    wider = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3))
    with pytest.raises(ValueError, match=r"model c .*misshapen: 0\.weight \(9, 5\) instead of \(8, 5\)"):
        interpolate(MLP.model(0), MLP.model(1), wider)


def test_equal_models_are_refused():
    with pytest.raises(ValueError, match="models a and b have equal weights"):
        interpolate(MLP.model(0), MLP.model(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": 4}, r"dims=4 is not one of 1, 2, 3"),
        ({"normalize": "filtr"}, r"normalize='filtr' is not one of 'filter'.*Did you mean 'filter'"),
        ({"ignore": "biasbn"}, r"ignore='biasbn' is not one of 'bias_bn'.*Did you mean 'bias_bn'"),
        ({"seed": 0.5}, r"seed=0\.5: give a whole number"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        random_subspace(MLP.model(), **options)


def test_bad_buffers_of_a_line_are_named():
    with pytest.raises(ValueError, match=r"buffers='recompute' is not one of 'interpolate', 'frozen'"):
        interpolate(MLP.model(0), MLP.model(1), buffers="recompute")


def curved(n_inputs: int = 4, dtype: str = "float64") -> tuple[Objective, torch.Tensor]:
    """Give a least-squares problem and its Hessian, which is 2 X^T X / n wherever one stands."""
    x = seeded(lambda: torch.randn(30, n_inputs).double() * torch.tensor([3.0, 2.0, 1.0, 0.3])[:n_inputs].double(), 3)
    model = seeded(lambda: torch.nn.Linear(n_inputs, 1, bias=False).double(), 4)
    return Objective(model, (x, torch.zeros(30, 1).double()), loss="mse", dtype=dtype), 2 * x.T @ x / 30


def test_hessian_directions_are_eigenvectors_scaled_to_a_rise_of_one():
    objective, hessian = curved()
    values, vectors = torch.linalg.eigh(hessian)
    plane = hessian_subspace(objective, tol=1e-8)
    assert plane.kind == "hessian"
    for axis, place in ((0, -1), (1, -2)):
        direction = plane.directions[axis]["weight"].flatten()
        assert plane.config["eigenvalues"][axis] == pytest.approx(float(values[place]))
        assert abs(float(direction @ vectors[:, place])) == pytest.approx(float(direction.norm()))
        assert float(direction[direction.abs().argmax()]) > 0
        expected = min(math.sqrt(2 / float(values[place])), float(objective.theta["weight"].norm()))
        assert float(direction.norm()) == pytest.approx(expected)
    flat = objective.theta["weight"].flatten() * 0
    rise = objective.measure({"weight": (flat + plane.directions[0]["weight"].flatten())[None]})["train", "loss"]
    assert rise == pytest.approx(plane.config["eigenvalues"][0] / 2 * float(plane.directions[0]["weight"].norm()) ** 2)


def test_hessian_directions_of_both_ends():
    objective, hessian = curved()
    values = torch.linalg.eigvalsh(hessian)
    plane = hessian_subspace(objective, ends="both", dims=3, scale="unit", tol=1e-8)
    assert plane.config["eigenvalues"] == pytest.approx([float(values[place]) for place in (-1, 0, -2)])
    assert [float(d["weight"].norm()) for d in plane.directions] == pytest.approx([1, 1, 1])
    theta = hessian_subspace(objective, scale="theta", dims=1)
    assert float(theta.directions[0]["weight"].norm()) == pytest.approx(float(objective.theta["weight"].norm()))


def test_hessian_directions_move_the_chosen_parameters_only():
    objective = Objective(torch.nn.Linear(3, 2), seeded(lambda: (torch.randn(9, 3), torch.arange(9) % 2), 5))
    plane = hessian_subspace(objective, parameters="weights", dims=1)
    assert not plane.directions[0]["bias"].any()
    assert plane.directions[0]["weight"].any()
    with pytest.raises(ValueError, match="two axes"):
        hessian_subspace(objective, dims=1, ends="both")


def test_more_axes_than_eigenvalues_are_refused():
    objective, _ = curved(1)
    with pytest.raises(ValueError, match="1 weights can't span 2 axes"):
        hessian_subspace(objective, dims=2)
    # Three weights, two different eigenvalues: one vector would stand at both ends.
    round_ = Objective(torch.nn.Linear(3, 1, bias=False), (torch.eye(3), torch.zeros(3, 1)), loss="mse")
    with pytest.raises(ValueError, match="fewer than 2"):
        hessian_subspace(round_, ends="both")


def test_directions_of_one_split_are_those_of_its_loss():
    x, y = seeded(lambda: (torch.randn(12, 3).double(), torch.randn(12, 1).double()), 6)
    model = torch.nn.Linear(3, 1, bias=False).double()
    both = Objective(model, {"train": (x[:6], y[:6]), "test": (x[6:], y[6:])}, loss="mse", dtype="float64")
    found = hessian_subspace(both, split="test", dims=1, tol=1e-8).config["eigenvalues"][0]
    assert found == pytest.approx(float(torch.linalg.eigvalsh(2 * x[6:].T @ x[6:] / 6)[-1]))
