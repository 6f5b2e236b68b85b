"""Every engine gives what a plain float64 loop gives at the same weights, in any order and company of cells."""

import copy
import logging
import math
from dataclasses import dataclass

import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import lltoolkit as ll
from lltoolkit import Objective, interpolate, random_subspace
from lltoolkit.tensors import stem
from lltoolkit.tensors.engines import ENGINES, FoldedEngine, make_engine
from lltoolkit.tensors.evaluate import Evaluator, Task
from lltoolkit.tensors.rewriting import CannotFold
from tests.models import BY_NAME, CASES, Case, seeded

CNN = BY_NAME["cnn_batchnorm"]
MLP = BY_NAME["mlp"]
POINTS = [(0.3, -0.2), (0.0, 0.0), (-1.0, 1.0), (2.0, 0.5)]
NAMES = [name for name in ENGINES if name != "auto"]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def labels(n):
    return torch.randint(3, (n,))


def images(n):
    return torch.randn(n, 2, 8, 8), labels(n)


def settled(make):
    """Build a network whose batch-norm statistics and scales are those of some training, not 0 and 1."""

    def build():
        model = make()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.2)
        with torch.no_grad():
            for _ in range(3):
                model(torch.randn(16, 2, 8, 8) + 0.3)
        return model

    return build


def zoo(name, **options):
    return settled(lambda: ll.zoo.build_model(name, n_classes=3, in_channels=2, input_size=8, **options))


class PreActivation(nn.Module):
    """Batch norm before the convolution, dilated and depthwise convolutions, a view, two sums."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.first = nn.Conv2d(2, 4, 3, padding=2, dilation=2)
        self.depthwise = nn.Conv2d(4, 4, 3, padding="same", groups=4, bias=False)
        self.point = nn.Conv2d(4, 4, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 64, 3)

    def forward(self, x):
        x = self.first(functional.relu(self.norm(x)))
        x = x + self.depthwise(x)
        x += self.norm2(self.point(x))
        return self.head(x.view(x.size(0), -1))


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Conv1d(4, 3, 3))

    def forward(self, x):
        return self.body(x.flatten(2)).mean(2)


CONVOLUTIONAL = [
    Case("resnet8", zoo("resnet8"), images),
    Case("resnet8_b", zoo("resnet8", shortcut="B"), images),
    Case("resnet8_plain", zoo("resnet8", shortcut="none", width=2), images),
    Case("vgg9", zoo("vgg9"), images),
    Case("preactivation", settled(PreActivation), images),
    Case("conv1d", settled(Sequence), images),
]
FOLDABLE = {"mlp", "cnn_batchnorm", "vgg_dropout", "two_inputs", *(case.name for case in CONVOLUTIONAL)}


def moved(case, subspace, point):
    """Return a float64 copy of the case's model with weights and buffers moved by hand."""
    model = case.model().double()
    state = model.state_dict()
    for direction, coordinate in zip(subspace.directions, point, strict=True):
        for name, step in direction.items():
            state[name] += coordinate * step.double()
    return model


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ignore", ["bias_bn", "none"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("one", [*CASES, *CONVOLUTIONAL], ids=lambda case: case.name)
def test_every_engine_agrees_with_a_plain_float64_loop(one, name, ignore, device, caplog):
    objective = Objective(one.model(), one.data(), device=device, batch_size=4, **one.options)
    plane = random_subspace(objective, seed=1, ignore=ignore)
    engine = make_engine(objective, plane, name)
    if engine.name != name:
        assert engine.name == "flat"
        assert f"the {name} engine can't take this model: " in caplog.text
    for point, found in zip(POINTS, engine.measure_points(POINTS), strict=True):
        for key, value in one.plain(moved(one, plane, point), one.data()).items():
            assert found[key] == pytest.approx(value, rel=1e-5, abs=1e-7), (point, key)


@pytest.mark.parametrize("one", [*CASES, *CONVOLUTIONAL], ids=lambda case: case.name)
def test_auto_folds_what_can_be_folded(one):
    objective = Objective(one.model(), one.data(), **one.options)
    assert make_engine(objective, random_subspace(objective)).name == ("folded" if one.name in FOLDABLE else "flat")


@pytest.mark.parametrize("name", NAMES)
def test_every_engine_moves_buffers_along(name):
    a, b = CNN.model(0), CNN.model(1)
    objective = Objective(a, CNN.data(), buffers="interpolate")
    engine = make_engine(objective, interpolate(a, b), name)
    assert engine.name == name
    for (split, metric), value in CNN.plain(b, CNN.data()).items():
        assert engine.measure((1.0,))[split, metric] == pytest.approx(value, rel=1e-5, abs=1e-7)
    half = moved(CNN, interpolate(a, b), (0.5,))
    for key, value in CNN.plain(half, CNN.data()).items():
        assert engine.measure((0.5,))[key] == pytest.approx(value, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_every_engine_runs_in_float64(name, case):
    objective = Objective(case.model(), case.data(), dtype="float64", **case.options)
    plane = random_subspace(objective, seed=1)
    found = make_engine(objective, plane, name).measure((0.3, -0.2))
    for key, value in case.plain(moved(case, plane, (0.3, -0.2)), case.data()).items():
        assert found[key] == pytest.approx(value, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("one", [MLP, *CONVOLUTIONAL[:2]], ids=lambda case: case.name)
def test_neither_order_nor_company_of_cells_shows(one, name):
    objective = Objective(one.model(), one.data())
    plane = random_subspace(objective, seed=1, ignore="none")
    points = [(a, b) for a in (-1.0, 0.0, 0.7) for b in (0.0, 0.4, 1.0)]
    forwards = make_engine(objective, plane, name).measure_points(points)
    assert make_engine(objective, plane, name).measure_points(points[::-1]) == forwards[::-1]
    fresh = make_engine(Objective(one.model(), one.data()), plane, name)
    assert [fresh.measure(point) for point in points] == forwards


def test_the_origin_of_the_flat_engine_is_the_minimizer_bit_for_bit(case):
    objective = Objective(case.model(), case.data(), **case.options)
    engine = make_engine(objective, random_subspace(objective), "flat")
    engine.measure((0.7, 0.7))
    assert engine.measure((0.0, 0.0)) == objective.at_minimizer()


@pytest.mark.parametrize("name", NAMES)
def test_an_objective_measures_its_minimizer_after_an_engine_moved_it(name):
    objective = Objective(CNN.model(0), CNN.data())
    first = objective.at_minimizer()
    make_engine(objective, interpolate(CNN.model(0), CNN.model(1)), name).measure((0.5,))
    assert objective.measure(objective.theta) == first
    assert Objective(CNN.model(0), CNN.data()).gradient_norm() == objective.gradient_norm()


@pytest.mark.parametrize("name", ["flat", "folded", "batched"])
def test_changing_a_direction_later_does_not_show(name):
    objective = Objective(CNN.model(), CNN.data())
    plane = random_subspace(objective)
    engine = make_engine(objective, plane, name)
    before = engine.measure((0.5, 0.5))
    with torch.no_grad():
        plane.directions[0]["conv.weight"].zero_()
    assert engine.measure((0.5, 0.5)) == before


# --- forwards that a rewriting must see through, or leave alone


class InPlaceStatement(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Linear(256, 3)

    def forward(self, x):
        x = self.conv(x)
        self.relu(x)  # what it returns is not used
        return self.fc(x.flatten(1))


class FrozenNorm(nn.Module):
    """Batch norm written out on buffers."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(256, 3)
        self.register_buffer("running_var", torch.rand(4) + 0.5)

    def forward(self, x):
        scale = (self.running_var + 1e-5).rsqrt()
        return self.fc((self.conv(x) * scale[:, None, None]).relu().flatten(1))


class ClampedBeforeSum(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(256, 3)

    def forward(self, x):
        x = self.first(x)
        h = self.second(x)
        x = x.clamp_(-5, 5)
        return self.fc((h + x).flatten(1))


@dataclass
class Answer:
    logits: torch.Tensor


class AnswersAnObject(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(128, 3)

    def forward(self, x):
        y = x * 2
        y.add_(self.conv(x))
        return Answer(self.fc(y.flatten(1)))


class Patches(nn.Module):
    """An axis of the input goes into the batch and comes out again."""

    def __init__(self):
        super().__init__()
        self.first, self.fc = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.first(x.reshape(-1, 16)).relu().view(-1, 8, 8).mean(1))


PECULIAR = [InPlaceStatement, FrozenNorm, ClampedBeforeSum, AnswersAnObject, Patches]


@pytest.mark.parametrize("make", PECULIAR)
@pytest.mark.parametrize("point", [(0.0,), (0.5,), (1.0,), (20.0,)])
def test_peculiar_forwards_are_measured_as_they_are(make, point):
    a, b = seeded(make, 0), seeded(make, 1)
    data = seeded(lambda: {"train": images(10), "test": images(5)}, 100)
    line = interpolate(a, b)
    found = make_engine(Objective(a, data, batch_size=4), line).measure(point)
    exact = make_engine(Objective(a, data, dtype="float64"), line, "plain").measure(point)
    for key, value in exact.items():
        assert found[key] == pytest.approx(value, rel=1e-5, abs=1e-7, nan_ok=True)


def test_a_cell_that_overflows_is_nan_by_every_engine():
    def deep():
        layers = [layer for _ in range(12) for layer in (nn.Conv2d(2, 2, 3, padding=1), nn.ReLU())]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 3))

    objective = Objective(seeded(deep, 0), seeded(lambda: images(6), 100))
    line = random_subspace(objective, dims=1, seed=1)
    values = {name: make_engine(objective, line, name).measure((1e4,))["train", "loss"] for name in NAMES}
    assert math.isnan(values["plain"])
    assert all(math.isnan(value) for value in values.values()), values


def test_the_stem_is_kept_and_gives_what_the_layer_gives():
    for one in (MLP, CNN):
        objective = Objective(one.model(), one.data(train=9, test=5), batch_size=4)
        plane = random_subspace(objective, seed=1)
        engine = make_engine(objective, plane)
        assert engine._stem is not None
        for key, value in one.plain(moved(one, plane, (0.3, -0.2)), one.data(train=9, test=5)).items():
            assert engine.measure((0.3, -0.2))[key] == pytest.approx(value, rel=1e-5, abs=1e-7)


def test_a_model_that_keeps_an_activation_can_travel_after_a_gradient():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = MLP.model()

        def forward(self, x):
            self.kept = self.inner(x)
            return self.kept

    objective = Objective(seeded(Keeping, 0), MLP.data())
    objective.gradient_norm()
    arrived = cloudpickle.loads(cloudpickle.dumps(objective))
    arrived.attach(objective.examples)
    assert arrived.measure(objective.theta) == objective.at_minimizer()


# --- what can't be folded


def test_weights_that_are_not_moved_are_folded_all_the_same():
    objective = Objective(CNN.model(), CNN.data(), parameters="head")
    plane = random_subspace(objective, seed=1)
    engine = make_engine(objective, plane)
    assert engine.name == "folded"
    for key, value in CNN.plain(moved(CNN, plane, (0.3, -0.2)), CNN.data()).items():
        assert engine.measure((0.3, -0.2))[key] == pytest.approx(value, rel=1e-5, abs=1e-7)


def reason(model, **options):
    objective = Objective(model, CNN.data(), **options)
    with pytest.raises(CannotFold) as caught:
        FoldedEngine(objective, random_subspace(objective))
    return str(caught.value)


def test_the_reason_is_said_where_a_model_can_not_be_folded():
    class Branching(type(CNN.model())):
        def forward(self, x):
            return super().forward(x if x.mean() > 100 else 2 * x)

    class Peeking(type(CNN.model())):
        def forward(self, x):
            return super().forward(x) * (2 if isinstance(x, torch.fx.Proxy) else 1)

    hooked = CNN.model()
    hooked.norm.register_forward_hook(lambda module, given, output: 2 * output)
    assert "forward hooks" in reason(hooked)
    assert "recompute" in reason(CNN.model(), buffers="recompute")
    assert "can't be traced by torch.fx (TraceError" in reason(seeded(Branching, 0))
    assert "gives other answers" in reason(seeded(Peeking, 0))


def test_weights_of_a_parametrization_are_left_to_it():
    model = CNN.model()
    nn.utils.parametrizations.weight_norm(model.conv)
    objective = Objective(model, CNN.data())
    plane = random_subspace(objective, seed=1, ignore="none")
    engine = make_engine(objective, plane)
    assert engine.name == "flat"
    twin = copy.deepcopy(model)
    state = twin.state_dict()
    for name, step in plane.directions[0].items():
        state[name] += 0.5 * step
    for key, value in CNN.plain(twin, CNN.data()).items():
        assert engine.measure((0.5, 0.0))[key] == pytest.approx(value, rel=1e-5, abs=1e-7)


def test_a_layer_used_twice_is_not_folded():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(2, 4, 3, padding=1)
            self.again = nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            x = functional.relu(self.again(functional.relu(self.first(x))))
            return self.head(functional.relu(self.again(x)).mean((2, 3)))

    model = seeded(Twice, 0)
    objective = Objective(model, CNN.data())
    plane = random_subspace(objective, seed=1)
    assert make_engine(objective, plane).name == "folded"
    double = Objective(model, CNN.data(), dtype="float64")
    expected = double.measure({name: tensor.double() for name, tensor in plane.at(0.3, -0.2).items()})
    assert make_engine(objective, plane).measure((0.3, -0.2)) == pytest.approx(expected, rel=1e-5)


# --- batches, samples, other processes


class Hungry(nn.Module):
    """Runs out of memory on more than `most` examples at once."""

    def __init__(self, most):
        super().__init__()
        self.inner, self.most = MLP.model(), most

    def forward(self, x):
        if len(x) > self.most:
            raise MemoryError
        return self.inner(x)


def test_batches_are_halved_where_memory_runs_out(caplog):
    x, y = MLP.data(train=40)["train"]
    hungry = Objective(Hungry(6), (x, y), batch_size=32)
    values = hungry.at_minimizer()
    assert hungry.batch_size == 4
    assert "memory ran out at batches of 8" in caplog.text
    fed = Objective(Hungry(40), (x, y)).at_minimizer()
    assert values == pytest.approx(fed, rel=1e-6)


def test_one_example_that_does_not_fit_is_an_error():
    class Starving(Hungry):
        def forward(self, x):
            if self.most == 0:
                raise MemoryError
            return self.inner(x)

    objective = Objective(Starving(1), MLP.data())
    objective.network.model.most = 0
    with pytest.raises(MemoryError):
        objective.at_minimizer()
    assert objective.batch_size == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_values_of_a_sample_are_those_of_all_at_its_positions(name):
    objective = Objective(CNN.model(), CNN.data(train=20), batch_size=7)
    plane = random_subspace(objective, seed=1)
    evaluator = Evaluator(objective, [plane], {"engine": name, "batch_size": 7, "n_threads": 1, "precision": "exact"})
    cells, points = np.arange(3), [(0, point) for point in POINTS[:3]]
    whole = evaluator(Task(cells, points, examples=True))
    chosen = {"train": np.array([1, 4, 13]), "test": np.array([0, 5])}
    part = evaluator(Task(cells, points, positions=chosen))
    assert part.values == []
    for every, some, values in zip(whole.examples, part.examples, whole.values, strict=True):
        for (split, metric), found in some.items():
            np.testing.assert_allclose(found, every[split, metric][chosen[split]], rtol=1e-6)
            assert np.mean(every[split, metric]) == pytest.approx(values[split, metric])


def test_a_sample_needs_values_of_every_example():
    def mean(output, target):
        return functional.cross_entropy(output, target)

    objective = Objective(MLP.model(), MLP.data(), loss=mean)
    how = {"engine": "flat", "batch_size": 4, "n_threads": 1, "precision": "exact"}
    evaluator = Evaluator(objective, [random_subspace(objective)], how)
    with pytest.raises(ValueError, match=r"loss is a mean over a batch; .*Return a tensor of shape \(B,\)"):
        evaluator(Task(np.arange(1), [(0, (0.0, 0.0))], examples=True))


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_lower_precision_is_near_and_leaves_no_switch_behind(precision):
    switches = torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.conv.fp32_precision
    objective = Objective(CNN.model(), CNN.data())
    exact = objective.at_minimizer()
    objective.compute_as(objective.batch_size, 1, precision)
    near = objective.at_minimizer()
    assert near["train", "loss"] == pytest.approx(exact["train", "loss"], rel=0.02)
    assert (near != exact) == (precision == "bf16")  # a CPU has no TF32
    assert (torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.conv.fp32_precision) == switches
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("factory", [False, True])
def test_an_objective_measures_the_same_after_a_journey(case, factory):
    made = Objective((lambda: case.model()) if factory else case.model(), case.data(), **case.options)
    plane = random_subspace(made, seed=1)
    arrived = cloudpickle.loads(cloudpickle.dumps(made))
    arrived.attach(made.examples)
    for name in NAMES:
        there, here = make_engine(arrived, plane, name), make_engine(made, plane, name)
        assert there.name == here.name
        assert there.measure((0.3, -0.2)) == here.measure((0.3, -0.2))
    assert arrived.config == made.config


def test_what_is_no_model_is_named():
    with pytest.raises(ValueError, match=r"model is a str; a torch.nn.Module is wanted"):
        Objective("resnet20", MLP.data())
    with pytest.raises(ValueError, match=r"a function that returns a int"):
        Objective(lambda: 3, MLP.data())


def test_auto_says_why_in_the_log(caplog):
    caplog.set_level(logging.INFO)
    objective = Objective(BY_NAME["lstm"].model(), BY_NAME["lstm"].data())
    make_engine(objective, random_subspace(objective))
    assert "no convolution" in caplog.text


def test_a_stem_too_large_for_the_cache_is_not_kept(monkeypatch):
    monkeypatch.setattr(stem, "LARGEST", 100)
    objective = Objective(MLP.model(), MLP.data())
    with pytest.raises(CannotFold, match="no first layer that is worth keeping"):
        FoldedEngine(objective, random_subspace(objective))
    objective = Objective(CNN.model(), CNN.data())
    plane = random_subspace(objective, seed=1)
    without = make_engine(objective, plane).measure((0.3, -0.2))
    monkeypatch.undo()
    assert without == pytest.approx(make_engine(objective, plane).measure((0.3, -0.2)), rel=1e-6)
