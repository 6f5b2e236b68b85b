"""A subspace gives points, projects on itself, and comes back from disk as it was."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from lltoolkit import Objective, Subspace, compute_surface, interpolate, random_subspace
from lltoolkit.tensors.params import norm, parameters_of, subtract
from tests.models import BY_NAME, seeded

MLP = BY_NAME["mlp"]
CNN = BY_NAME["cnn_batchnorm"]


def vector(seed, scale=1.0, dtype=torch.float64):
    return seeded(lambda: {"w": scale * torch.randn(4, 3, dtype=dtype), "b": scale * torch.randn(5, dtype=dtype)}, seed)


def combine(parts, weights):
    return {name: sum(w * part[name] for w, part in zip(weights, parts, strict=True)) for name in parts[0]}


def slanted(seed, dims, scales=(1.0, 1.0, 1.0), slant=0.9):
    """Directions of very different lengths that are far from orthogonal."""
    common = vector(seed + 10)
    directions = [
        combine([common, vector(seed + place)], [slant * scales[place], scales[place]]) for place in range(dims)
    ]
    return Subspace(vector(seed + 20), directions)


coordinate = st.floats(-4, 4).filter(lambda value: value == 0 or abs(value) > 1e-3)
scale = st.sampled_from([1e-6, 1e-3, 1.0, 1e3, 1e5])


# --- points


@given(st.integers(0, 50), st.lists(coordinate, min_size=1, max_size=3))
def test_a_point_is_the_origin_and_multiples_of_the_directions(seed, coordinates):
    subspace = slanted(seed, len(coordinates))
    expected = combine([subspace.origin, *subspace.directions], [1.0, *coordinates])
    found = subspace.at(*coordinates)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12)


def test_points_are_fresh_tensors():
    model = MLP.model()
    plane = random_subspace(model)
    weight = model[0].weight.detach().clone()
    for theta in (plane.at(0, 0), plane.at(0, 0), plane.at(1, 1)):
        for tensor in theta.values():
            tensor.fill_(7)
    assert torch.equal(model[0].weight, weight)
    assert torch.equal(plane.at(0, 0)["0.weight"], weight)
    assert torch.equal(plane.origin["0.weight"], weight)


def test_a_subspace_keeps_copies_of_origin_and_directions():
    origin, direction = vector(0), vector(1)
    line = Subspace(origin, [direction])
    kept = line.at(2.0)
    origin["w"].zero_()
    direction["w"].zero_()
    assert torch.equal(line.at(2.0)["w"], kept["w"])


# --- projection


@given(st.integers(0, 50), st.lists(coordinate, min_size=1, max_size=3), st.lists(scale, min_size=3, max_size=3))
def test_projecting_a_point_of_the_subspace_gives_its_coordinates(seed, coordinates, scales):
    subspace = slanted(seed, len(coordinates), scales)
    found, residual = subspace.project(subspace.at(*coordinates))
    # What float64 keeps of a short step beside the origin and a long step is all that can come back.
    steps = [abs(c) * s for c, s in zip(coordinates, scales, strict=False)]
    for axis, value in enumerate(found):
        noise = 1e-12 * (10 + max(steps)) / scales[axis]
        assert value == pytest.approx(coordinates[axis], rel=1e-6, abs=noise)
    assert residual <= 1e-12 * (10 + max(steps)) / max(*steps, 1e-300) if any(steps) else residual == 0


@given(st.integers(0, 50), st.lists(coordinate, min_size=1, max_size=3), st.floats(0.01, 10))
def test_a_point_outside_obeys_pythagoras(seed, coordinates, distance):
    subspace = slanted(seed, len(coordinates))
    theta = combine([subspace.at(*coordinates), vector(seed + 30)], [1.0, distance])
    found, residual = subspace.project(theta)
    inside = norm(subtract(subspace.at(*found), subspace.origin))
    outside = norm(subtract(theta, subspace.at(*found)))
    whole = norm(subtract(theta, subspace.origin))
    assert math.hypot(inside, outside) == pytest.approx(whole, rel=1e-9)
    assert residual == pytest.approx(outside / whole, abs=1e-9)
    for step in (1e-3, -1e-3):  # the nearest point: any other is farther
        for axis in range(subspace.dims):
            near = list(found)
            near[axis] += step
            assert norm(subtract(theta, subspace.at(*near))) > outside


def test_the_origin_projects_on_0_with_residual_0():
    plane = slanted(0, 2)
    assert plane.project(plane.origin) == ((0.0, 0.0), 0.0)


def test_a_point_at_right_angles_has_residual_1():
    line = Subspace({"w": torch.zeros(2)}, [{"w": torch.tensor([3.0, 0.0])}])
    assert line.project({"w": torch.tensor([0.0, 5.0])}) == ((0.0,), 1.0)


@pytest.mark.parametrize("factor", [1.0, -2.0, 0.0])
def test_parallel_and_zero_directions_do_not_crash(factor):
    direction = vector(1)
    plane = Subspace(vector(0), [direction, combine([direction], [factor])])
    target = combine([plane.origin, direction], [1.0, 3.0])
    found, residual = plane.project(target)
    assert residual == pytest.approx(0, abs=1e-12)
    assert found[0] + factor * found[1] == pytest.approx(3)


def test_projection_leaves_the_buffers_out():
    a, b = CNN.model(0), CNN.model(1)
    line = interpolate(a, b)
    b.norm.running_mean += 100
    found, residual = line.project(parameters_of(b))
    assert found == (pytest.approx(1, rel=1e-6),)
    assert residual < 1e-6
    with_buffers = parameters_of(b) | {"norm.running_mean": b.norm.running_mean, "norm.running_var": b.norm.running_var}
    assert line.project(with_buffers) == (found, residual)


# --- geometry


def test_geometry_equals_the_flat_vectors():
    volume = slanted(0, 3, (1.0, 10.0, 0.1))
    flat = [torch.cat([d["w"].flatten(), d["b"]]) for d in (*volume.directions, volume.origin)]
    geometry = volume.geometry()
    cosine = torch.nn.functional.cosine_similarity
    assert geometry["direction_cosine"] == pytest.approx(float(cosine(flat[0], flat[1], dim=0)))
    assert geometry["direction_cosine_alpha_beta"] == geometry["direction_cosine"]
    assert geometry["direction_cosine_alpha_gamma"] == pytest.approx(float(cosine(flat[0], flat[2], dim=0)))
    assert geometry["direction_cosine_beta_gamma"] == pytest.approx(float(cosine(flat[1], flat[2], dim=0)))
    for place, axis in enumerate(("alpha", "beta", "gamma")):
        assert geometry[f"direction_norm_{axis}"] == pytest.approx(float(flat[place].norm() / flat[3].norm()))


def test_moved_share_counts_weights_that_any_direction_moves():
    model = MLP.model()
    biases = model[0].bias.numel() + model[2].bias.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert random_subspace(model).geometry()["moved_share"] == pytest.approx(1 - biases / total)
    assert math.isnan(random_subspace(model, dims=1).geometry()["direction_cosine"])


# --- on disk

MADE = {
    "random": lambda: random_subspace(CNN.model(), seed=3, dims=3, normalize="layer"),
    "line with buffers": lambda: interpolate(CNN.model(0), CNN.model(1)),
    "custom float64": lambda: slanted(0, 2),
    "names with slashes": lambda: Subspace(
        {"a/b": torch.ones(2), "b": torch.ones(())}, [{"a/b": torch.ones(2), "b": torch.ones(())}]
    ),
    "not contiguous": lambda: Subspace({"w": torch.randn(3, 2).T}, [{"w": torch.randn(3, 2).T}]),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_save_and_open_give_the_same_subspace_bit_for_bit(make, tmp_path):
    saved = make()
    opened = Subspace.open(saved.save(tmp_path / "plane.safetensors"))
    assert (opened.id, opened.config, opened.buffer_names) == (saved.id, saved.config, saved.buffer_names)
    assert opened.dims == saved.dims
    for a, b in zip((opened.origin, *opened.directions), (saved.origin, *saved.directions), strict=True):
        assert set(a) == set(b)
        for name in b:
            assert a[name].dtype == b[name].dtype
            assert torch.equal(a[name], b[name])


def test_saving_again_replaces_the_file_whole(tmp_path):
    path = tmp_path / "plane.safetensors"
    slanted(0, 2).save(path)
    other = slanted(1, 3)
    other.save(path)
    assert Subspace.open(path).id == other.id
    assert [item.name for item in tmp_path.iterdir()] == ["plane.safetensors"]


def test_ids_change_with_whatever_moves_a_point():
    origin, direction = vector(0), vector(1)
    base = Subspace(origin, [direction])
    moved = {"w": direction["w"].clone(), "b": direction["b"].clone()}
    moved["b"][2] += 1e-12
    others = [
        Subspace(vector(2), [direction]),
        Subspace(origin, [moved]),
        Subspace(origin, [direction, vector(3)]),
        Subspace(origin, [direction], buffer_names=["b"]),
        *(random_subspace(MLP.model(), seed=seed) for seed in (0, 1)),
        random_subspace(MLP.model(), dims=1),
        random_subspace(MLP.model(), normalize="layer"),
        random_subspace(MLP.model(), ignore="none"),
        random_subspace(MLP.model(), orthogonalize=True),
        random_subspace(MLP.model(1)),
    ]
    assert len({base.id, *(other.id for other in others)}) == 12
    assert Subspace(vector(0), [vector(1)]).id == base.id


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_changed_value_in_the_file_is_seen(make, tmp_path):
    path = make().save(tmp_path / "plane.safetensors")
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    key = next(key for key in tensors if key.startswith("alpha/"))
    tensors[key] = tensors[key] + 0.5
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=r"plane\.safetensors was changed after it was written"):
        Subspace.open(path)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(keep, tmp_path):
    path = slanted(0, 2).save(tmp_path / "plane.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"plane\.safetensors is damaged or no safetensors file.*Subspace\.save"):
        Subspace.open(path)


def test_other_files_are_refused(tmp_path):
    weights = tmp_path / "weights.safetensors"
    save_file(parameters_of(MLP.model()), weights)
    with pytest.raises(ValueError, match=r"weights\.safetensors holds no subspace, perhaps the weights of a model"):
        Subspace.open(weights)
    (tmp_path / "text.safetensors").write_text(json.dumps({"a": 1}))
    with pytest.raises(ValueError, match="is damaged or no safetensors file"):
        Subspace.open(tmp_path / "text.safetensors")
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors does not exist; Subspace\.save"):
        Subspace.open(tmp_path / "none.safetensors")
    odd = tmp_path / "odd.safetensors"
    save_file({"a": torch.zeros(1)}, odd, {"lltoolkit.subspace": "{not json"})
    with pytest.raises(ValueError, match=r"odd\.safetensors"):
        Subspace.open(odd)


def test_an_unwritable_path_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*does not exist"):
        slanted(0, 1).save(tmp_path / "nowhere" / "plane.safetensors")


# --- what does not fit


def test_a_direction_for_another_model_is_refused_with_the_names():
    origin = parameters_of(MLP.model())
    direction = parameters_of(CNN.model())
    with pytest.raises(ValueError, match=r"direction of alpha does not fit the origin \(missing: 0\.weight.*unknown"):
        Subspace(origin, [direction])
    misshapen = dict(origin)
    misshapen["0.weight"] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"direction of beta .*misshapen: 0\.weight \(3, 3\) instead of \(8, 5\)"):
        Subspace(origin, [origin, misshapen])


def test_an_objective_of_another_model_is_refused():
    plane = random_subspace(MLP.model())
    with pytest.raises(ValueError, match=r"the subspace does not fit this objective .*Is it of another model"):
        compute_surface(Objective(CNN.model(), CNN.data()), plane, resolution=3, progress=False)


def test_a_random_plane_of_another_minimizer_is_refused():
    plane = random_subspace(MLP.model(0))
    with pytest.raises(ValueError, match=r"drawn around other weights.*random_subspace\(objective"):
        compute_surface(Objective(MLP.model(1), MLP.data()), plane, resolution=3, progress=False)


def test_a_plane_elsewhere_whose_buffers_nobody_knows_is_refused():
    line = interpolate(CNN.model(0), CNN.model(1), buffers="frozen")
    with pytest.raises(ValueError, match="batch-norm statistics belong to them"):
        compute_surface(Objective(CNN.model(2), CNN.data()), line, resolution=3, progress=False)


def test_interpolating_buffers_on_a_plane_that_moves_none_is_refused():
    model = CNN.model()
    with pytest.raises(ValueError, match=r"buffers='interpolate', but this subspace \(random\) moves no buffers"):
        compute_surface(
            Objective(model, CNN.data(), buffers="interpolate"), random_subspace(model), resolution=3, progress=False
        )


@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("float64", "float32")])
def test_a_plane_of_one_precision_serves_an_objective_of_the_other(dtypes):
    of_plane, of_objective = dtypes
    model = MLP.model().to(getattr(torch, of_plane))
    with torch.no_grad():
        model[0].weight.mul_(1 / 3)  # in float64: values that float32 has not
    objective = Objective(model, MLP.data(), dtype=of_objective)
    surface = compute_surface(objective, random_subspace(model), resolution=3, progress=False)
    middle = surface["loss"].sel(alpha=0, beta=0)
    for split in ("train", "test"):
        expected = objective.at_minimizer()[split, "loss"]
        assert float(middle.sel(split=split)) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("origin", "n", "message"),
    [
        ({"w": torch.zeros(2)}, 0, r"0 directions given; a subspace has 1, 2 or 3"),
        ({"w": torch.zeros(2)}, 4, r"4 directions given"),
        ({"w": torch.zeros(2), "n": torch.tensor(3)}, 1, r"n .*torch\.int64.*floating-point"),
        ({}, 1, r"no weights"),
    ],
)
def test_bad_origins_and_directions_are_named(origin, n, message):
    with pytest.raises(ValueError, match=message):
        Subspace(origin, [origin] * n)


def test_coordinates_must_be_as_many_as_the_axes():
    with pytest.raises(ValueError, match=r"1 coordinates given; this subspace has 2: \('alpha', 'beta'\)"):
        slanted(0, 2).at(1.0)


def test_projecting_weights_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"theta does not fit this subspace \(missing"):
        slanted(0, 2).project({"w": torch.zeros(4, 3)})
