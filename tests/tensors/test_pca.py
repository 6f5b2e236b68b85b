"""A PCA plane is scikit-learn's, gives back the plane that a path was made in, and needs memory for few checkpoints."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_model
from sklearn.decomposition import PCA, TruncatedSVD
from torch import nn

from lltoolkit import Objective, Subspace
from lltoolkit.tensors import gram as gram_module
from lltoolkit.tensors.checkpoints import SKETCH, list_checkpoints, save_checkpoint
from lltoolkit.tensors.engines import require_match
from lltoolkit.tensors.foreign import open_checkpoints
from lltoolkit.tensors.params import dot, norm, subtract
from lltoolkit.tensors.pca import pca_subspace
from lltoolkit.tensors.random_walk import walk_variance
from tests.models import BY_NAME, seeded

SHAPES = {"conv": (8, 3, 5), "bias": (40,), "norm": (12,)}


def vector(seed, scale=1.0):
    return seeded(
        lambda: {name: scale * torch.randn(shape, dtype=torch.float64) for name, shape in SHAPES.items()}, seed
    )


def flat(params):
    return np.concatenate([params[name].double().numpy().ravel() for name in SHAPES])


def write(folder, states, *, first=0, dtype="float32"):
    for step, state in enumerate(states, start=first):
        whole = dict(state) | {"norm.running_var": torch.full((12,), 1000.0 * step)}
        save_checkpoint(folder, whole, step=10 * step, epoch=step, dtype=dtype)
    return folder


def noisy(n=9, seed=0, about=50):
    """A random walk whose weights are far from zero, as trained ones are."""
    state, states = vector(about, 5.0), []
    for step in range(n):
        states.append(state)
        state = {
            name: tensor + part
            for (name, tensor), part in zip(state.items(), vector(100 * seed + step).values(), strict=True)
        }
    return states


def in_plane(origin, a, b, coordinates):
    return [{name: origin[name] + x * a[name] + y * b[name] for name in origin} for x, y in coordinates]


# --- the second road


@pytest.mark.parametrize("origin", ["final", "start", "mean"])
def test_about_the_mean_it_is_scikit_learns(tmp_path, origin):
    states = noisy()
    write(tmp_path, states, dtype=None)
    rows = np.stack([flat(state) for state in states])
    expected = PCA(3, svd_solver="full").fit(rows)
    found = pca_subspace(tmp_path, dims=3, origin=origin, center="mean")
    for direction, component in zip(found.directions, expected.components_, strict=True):
        assert abs(flat(direction) @ component) == pytest.approx(1, abs=1e-9)
    assert found.config["explained_variance"] == pytest.approx(expected.explained_variance_ratio_, rel=1e-8)
    assert found.config["singular_values"] == pytest.approx(expected.singular_values_, rel=1e-8)
    points = {"final": rows[-1], "start": rows[0], "mean": rows.mean(0)}
    assert flat(found.origin) == pytest.approx(points[origin])


@pytest.mark.parametrize("origin", ["final", "start", "mean"])
def test_about_the_origin_it_is_the_singular_value_decomposition(tmp_path, origin):
    states = noisy()
    write(tmp_path, states, dtype=None)
    rows = np.stack([flat(state) for state in states])
    rows -= {"final": rows[-1], "start": rows[0], "mean": rows.mean(0)}[origin]
    found = pca_subspace(tmp_path, dims=3, origin=origin, center="origin")
    values, axes = np.linalg.svd(rows, full_matrices=False)[1:]
    for direction, component in zip(found.directions, axes[:3], strict=True):
        assert abs(flat(direction) @ component) == pytest.approx(1, abs=1e-9)
    assert found.config["singular_values"] == pytest.approx(values[:3], rel=1e-8)
    assert found.config["explained_variance"] == pytest.approx(values[:3] ** 2 / (values**2).sum(), rel=1e-8)
    truncated = TruncatedSVD(3, algorithm="arpack").fit(rows)
    assert found.config["singular_values"] == pytest.approx(truncated.singular_values_, rel=1e-8)


@settings(max_examples=15, deadline=None)
@given(slant=st.floats(0, 0.99), scale=st.sampled_from([1e-2, 1.0, 30.0]), seed=st.integers(0, 5))
def test_a_path_in_an_oblique_plane_gives_the_plane_back(tmp_path_factory, slant, scale, seed):
    """Known coordinates on directions that are neither orthogonal nor of length 1, in float32 files."""
    a, common = vector(seed), vector(seed + 10)
    b = {name: scale * (slant * a[name] + (1 - slant) * common[name]) for name in a}
    coordinates = np.random.default_rng(seed).normal(size=(7, 2)) * 20
    known = Subspace(vector(seed + 20), [a, b])
    folder = write(tmp_path_factory.mktemp("run"), in_plane(known.origin, a, b, coordinates), dtype=None)
    found = pca_subspace(folder)
    assert sum(found.config["explained_variance"]) == pytest.approx(1)
    for checkpoint, expected in zip(list_checkpoints(folder), coordinates, strict=True):
        theta = {name: tensor for name, tensor in checkpoint.load().items() if name in SHAPES}
        there, residual = found.project(theta)
        assert residual < 1e-5
        back, outside = known.project(found.at(*there))
        assert outside < 1e-5
        assert back == pytest.approx(tuple(expected), rel=1e-5, abs=1e-5)


def test_in_float32_the_plane_comes_back_too(tmp_path):
    a, b, origin = vector(1), vector(2, 1e-2), vector(3)
    t = np.linspace(0, 3, 12)
    write(tmp_path, in_plane(origin, a, b, np.stack([np.exp(-t), 20 * np.sin(t)], axis=1)))
    found = pca_subspace(tmp_path)
    assert found.origin["conv"].dtype == torch.float32
    for checkpoint in list_checkpoints(tmp_path)[:-1]:
        theta = {name: tensor for name, tensor in checkpoint.load().items() if name in SHAPES}
        assert found.project(theta)[1] < 1e-5


# --- what is promised


@pytest.mark.parametrize("scale", ["unit", "path"])
def test_one_scale_each_axis_and_the_path_runs_from_left_to_right(tmp_path, scale):
    write(tmp_path, noisy())
    plane = pca_subspace(tmp_path, dims=3, scale=scale)
    path = []
    for checkpoint in list_checkpoints(tmp_path):
        path.append(plane.project({name: checkpoint.load()[name] for name in SHAPES})[0])
    path = np.array(path)
    assert path[-1] == pytest.approx(0)
    assert np.array(plane.config["extent"]) == pytest.approx(np.stack([path.min(0), path.max(0)], axis=1), abs=1e-5)
    for axis, direction in enumerate(plane.directions):
        farthest = path[np.abs(path[:, axis]).argmax(), axis]
        assert farthest < 0
        assert (-farthest if scale == "path" else norm(direction)) == pytest.approx(1, rel=1e-5)
        for other in plane.directions[:axis]:
            assert dot(direction, other) == pytest.approx(0, abs=1e-5 * norm(direction) * norm(other))


def test_buffers_are_no_part_of_it(tmp_path):
    plane = pca_subspace(write(tmp_path, noisy()))
    assert plane.origin.keys() == SHAPES.keys()
    assert not plane.buffer_names


def test_a_model_or_an_objective_tells_what_is_a_weight(tmp_path):
    """A file of others does not say that a buffer is none; with the objective the plane serves a surface."""
    model = BY_NAME["cnn_batchnorm"].model()
    model.register_buffer("kernel", torch.ones(2))
    for step in range(3):
        torch.save(
            {name: tensor + (2 - step) ** 2 * (0.1 + tensor) for name, tensor in model.state_dict().items()},
            tmp_path / f"{step}.pt",
        )
    assert "kernel" in pca_subspace(tmp_path, dims=1).origin
    assert pca_subspace(tmp_path, dims=1, model=model).origin.keys() == dict(model.named_parameters()).keys()
    objective = Objective(model, BY_NAME["cnn_batchnorm"].data(), parameters="head")
    require_match(objective, pca_subspace(tmp_path, dims=1, model=objective))


def test_a_tied_weight_may_go_by_another_name_in_the_files(tmp_path):
    """Files of ``safetensors.torch.save_model`` name it otherwise than the model does."""
    model = nn.ModuleDict({"embed": nn.Linear(3, 3), "decode": nn.Linear(3, 3, bias=False)})
    model["decode"].weight = model["embed"].weight
    for step in range(4):
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        save_checkpoint(tmp_path / "own", model, step=step, epoch=step)
        save_model(model, str(tmp_path / f"step{step}.safetensors"))
    plane = pca_subspace(open_checkpoints(tmp_path, "step*"), model=model)
    assert list(plane.origin) == ["embed.weight", "embed.bias"]
    assert plane.id == pca_subspace(tmp_path / "own", model=model).id


def test_other_weights_stay_at_the_origin(tmp_path):
    states = noisy()
    write(tmp_path, states, dtype=None)
    for chosen, parameters in (
        (["bias"], "bias"),
        (["conv"], "weights"),
        (["bias", "norm"], lambda name, tensor: tensor.ndim == 1),
    ):
        plane = pca_subspace(tmp_path, origin="mean", center="mean", parameters=parameters)
        rows = np.stack([np.concatenate([state[name].numpy().ravel() for name in chosen]) for state in states])
        expected = PCA(2, svd_solver="full").fit(rows)
        assert plane.config["explained_variance"] == pytest.approx(expected.explained_variance_ratio_, rel=1e-8)
        for direction in plane.directions:
            assert {name for name, tensor in direction.items() if tensor.any()} == set(chosen)
        assert flat(plane.origin) == pytest.approx(np.mean([flat(state) for state in states], axis=0))
    for parameters, told in (("head", r"'head' selects none of the 3 parameters"), ("(", "no regular expression")):
        with pytest.raises(ValueError, match=told):
            pca_subspace(tmp_path, parameters=parameters)


def test_several_runs_stand_on_one_plane(tmp_path):
    """From one start; the origin is the first run's end, the null that of walks with a common start."""
    one, other = noisy(6, seed=1), noisy(5, seed=2)
    assert norm(subtract(one[0], other[0])) == 0
    runs = {name: write(tmp_path / name, states, dtype=None) for name, states in (("sgd", one), ("adam", other))}
    rows = np.stack([flat(state) for state in one + other])
    for source in (runs, list(runs.values())):
        plane = pca_subspace(source, dims=3, center="mean")
        expected = PCA(3, svd_solver="full").fit(rows)
        assert plane.config["explained_variance"] == pytest.approx(expected.explained_variance_ratio_, rel=1e-8)
        assert flat(plane.origin) == pytest.approx(rows[5])
    assert (plane.config["n_runs"], plane.config["n_checkpoints"], plane.config["steps"]) == (2, 11, [0, 50])
    null = walk_variance([range(6), range(5)], n_components=3, center="mean", n_weights=172)
    assert plane.config["explained_variance_null"] == pytest.approx(null)
    apart = write(tmp_path / "apart", noisy(5, seed=3, about=60), dtype=None)
    assert pca_subspace([runs["sgd"], apart]).config["explained_variance_null"] is None


def test_a_random_walk_holds_what_the_null_says(tmp_path):
    write(tmp_path, noisy(12))
    for center in ("mean", "origin"):
        config = pca_subspace(tmp_path, center=center).config
        assert config["explained_variance"] == pytest.approx(config["explained_variance_null"], abs=0.07)


def test_the_same_checkpoints_give_the_same_subspace(tmp_path, monkeypatch):
    write(tmp_path, noisy())
    plane = pca_subspace(tmp_path)
    json.dumps(plane.config, allow_nan=False)
    assert Subspace.open(plane.save(tmp_path / "plane.safetensors")).id == plane.id
    for budget in (1, 9 * 8 * 17):
        monkeypatch.setattr(gram_module, "BUDGET", budget)
        again = pca_subspace(list_checkpoints(tmp_path))
        assert again.id == plane.id
        for one, other in zip(plane.directions, again.directions, strict=True):
            assert norm(subtract(one, other)) < 1e-6
    ids = {
        pca_subspace(tmp_path, **options).id
        for options in ({"origin": "start"}, {"center": "mean"}, {"scale": "path"}, {"parameters": "conv"}, {"dims": 1})
    }
    assert len(ids | {plane.id}) == 6


# --- bad input


def test_too_little_of_a_path(tmp_path):
    states = noisy(5)
    write(tmp_path / "two", states[:2])
    with pytest.raises(ValueError, match=r"2 checkpoints can't span dims=2: that takes 3\. Record more often"):
        pca_subspace(tmp_path / "two")
    assert pca_subspace(tmp_path / "two", dims=1).config["explained_variance"] == [1.0]
    write(tmp_path / "equal", states[:1] * 4)
    with pytest.raises(ValueError, match="the 4 checkpoints are equal, up to the rounding"):
        pca_subspace(tmp_path / "equal", dims=1)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="There is nothing"):
        pca_subspace(tmp_path / "none")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", None])
@pytest.mark.parametrize("center", ["origin", "mean"])
def test_rounding_is_no_dimension(tmp_path, dtype, center):
    """On a line, the second component of files in float32 or bfloat16 is what the type rounded off."""
    a, origin = vector(1), vector(2, 5.0)
    write(tmp_path, in_plane(origin, a, a, [(x, 0) for x in range(6)]), dtype=dtype)
    with pytest.raises(ValueError, match=r"the 6 checkpoints span 1 dimension beyond.*Choose dims=1"):
        pca_subspace(tmp_path, center=center)
    assert pca_subspace(tmp_path, center=center, dims=1).config["explained_variance"][0] > 0.99


def test_damage_and_nan_and_other_models(tmp_path, caplog):
    write(tmp_path, noisy())
    damaged = tmp_path / "step_00000030.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=r"step_00000030.*damaged='skip'"):
        pca_subspace(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert pca_subspace(tmp_path, damaged="skip").config["n_checkpoints"] == 8
    assert "step 30 is left out" in caplog.text
    damaged.write_bytes(whole)
    bad = noisy()[4]
    bad["norm"] = bad["norm"].clone()
    bad["norm"][3] = float("nan")
    save_checkpoint(tmp_path, bad, step=90, epoch=0)
    with pytest.raises(ValueError, match=r"step_00000090.*NaN or infinite weights in norm.*damaged='skip'"):
        pca_subspace(tmp_path)
    with caplog.at_level(logging.WARNING):  # the plane stands at the last one that can be used
        assert pca_subspace(tmp_path, damaged="skip").id == pca_subspace(list_checkpoints(tmp_path)[:9]).id
    assert "step 90 is left out" in caplog.text
    other = {**noisy()[4], "norm": torch.zeros(3)}
    save_checkpoint(tmp_path, other, step=90, epoch=0)
    with pytest.raises(ValueError, match=r"step_00000090.*another model.*norm \(3,\)"):
        pca_subspace(tmp_path)
    write(tmp_path / "other", [other] * 3)
    with pytest.raises(ValueError, match="another model"):
        pca_subspace([list_checkpoints(tmp_path)[:9], tmp_path / "other"])


def test_sketches_have_no_directions(tmp_path):
    for step in range(4):
        save_checkpoint(tmp_path, {SKETCH: torch.randn(4)}, step=step, epoch=0)
    with pytest.raises(ValueError, match=r"only a sketch.*trajectory_statistics"):
        pca_subspace(tmp_path)


@pytest.mark.parametrize(
    "options", [{"dims": 4}, {"origin": "end"}, {"center": "final"}, {"scale": "filter"}, {"damaged": "ignore"}]
)
def test_unknown_options(tmp_path, options):
    write(tmp_path, noisy(3))
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value!r} is not one of"):
        pca_subspace(tmp_path, **options)


# --- memory

PEAK = """
import re, resource, sys
from pathlib import Path
import torch
from lltoolkit.tensors.pca import pca_subspace
from lltoolkit.zoo import build_model
from safetensors.torch import save_file

torch.set_num_threads(1)
model = build_model("resnet20")
state = model.state_dict()
weights = [name for name, _ in model.named_parameters()]
drawn = torch.Generator().manual_seed(0)
for step in range(200):
    for name in weights:
        state[name] = state[name] + 0.01 * torch.randn(state[name].shape, generator=drawn)
    save_file(state, f"{sys.argv[1]}/step{step}.safetensors")

def peak():  # MB; Linux's ru_maxrss begins with the parent's
    if (status := Path("/proc/self/status")).exists():
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2

before = peak()
plane = pca_subspace(sys.argv[1])
print(before, peak(), *plane.config["explained_variance"])
"""


def test_200_checkpoints_of_resnet20_in_little_memory(tmp_path):
    """All of them in float64 would be 430 MB."""
    run = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], check=True, capture_output=True, text=True)
    before, after, *explained = map(float, run.stdout.split())
    assert after - before < 150
    assert after < 500
    assert explained == pytest.approx(walk_variance(range(200)), abs=0.02)
