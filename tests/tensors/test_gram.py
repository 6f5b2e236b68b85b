"""Streamed inner products and sums are those of the flat vectors, however finely they are cut."""

import logging

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lltoolkit import Objective
from lltoolkit.tensors.checkpoints import SKETCH, Checkpoint, list_checkpoints, save_checkpoint
from lltoolkit.tensors.gram import combine, gram, load_parameters, parameter_names, readable
from lltoolkit.tensors.sketch import sketch
from tests.models import BY_NAME, seeded

NAMES = ("conv", "bias", "scale", "empty")


def state(seed, scale=1.0, dtype=torch.float32):
    drawn = seeded(lambda: [torch.randn(shape) * scale for shape in ((4, 3, 2), (5,), (), (0, 3))], seed)
    weights = {name: (100 + part).to(dtype) for name, part in zip(NAMES, drawn, strict=True)}
    return weights | {"norm.running_mean": torch.randn(3), "seen": torch.tensor([seed])}


def path_of(folder, n=5, **options):
    for step in range(n):
        save_checkpoint(folder, state(step, **options), step=step, epoch=0)
    return list_checkpoints(folder)


def flat(params):
    return torch.cat([params[name].double().flatten() for name in NAMES])


@pytest.mark.parametrize("budget", [1, 5 * 8 * 7, 10**6, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_are_those_of_the_flat_vectors(tmp_path, budget, dtype):
    checkpoints = path_of(tmp_path, dtype=dtype)
    rows = torch.stack([flat(checkpoint.load()) for checkpoint in checkpoints])
    for reference, point in ((0, rows[0]), (3, rows[3]), (state(9), flat(state(9)))):
        found = gram(checkpoints, reference=reference, budget_bytes=budget)
        torch.testing.assert_close(found, (rows - point) @ (rows - point).T, rtol=1e-12, atol=1e-12)
    rows = rows[:, 24:29]
    found = gram(checkpoints, names=["bias"], budget_bytes=budget)
    torch.testing.assert_close(found, (rows - rows[0]) @ (rows - rows[0]).T, rtol=1e-12, atol=1e-12)


def test_no_digits_are_lost_far_from_zero(tmp_path):
    """Displacements of 1e-4 beside weights of 100: products of the weights would lose them."""
    checkpoints = path_of(tmp_path, scale=1e-4)
    rows = torch.stack([flat(checkpoint.load()) for checkpoint in checkpoints])
    rows = rows - rows[0]
    torch.testing.assert_close(gram(checkpoints), rows @ rows.T, rtol=1e-12, atol=0)


def test_sums_are_those_of_the_flat_vectors(tmp_path):
    checkpoints = path_of(tmp_path)
    rows = torch.stack([flat(checkpoint.load()) for checkpoint in checkpoints])
    weights = torch.tensor([[1.0, -2.0, 0.5, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    found = combine(checkpoints, weights, reference=1)
    for one, expected in zip(found, weights.double() @ (rows - rows[1]), strict=True):
        torch.testing.assert_close(flat(one), expected, rtol=1e-12, atol=1e-12)
        assert {name: tensor.shape for name, tensor in one.items()} == {name: state(0)[name].shape for name in NAMES}


def test_files_of_torch_too(tmp_path):
    own = path_of(tmp_path / "own", n=3)
    others = []
    for place, legacy in enumerate((False, False, True)):
        path = tmp_path / f"{place}.pt"
        torch.save({"model": own[place].load()}, path, _use_new_zipfile_serialization=not legacy)
        others.append(Checkpoint(path, place, -1))
    assert torch.equal(gram(others, budget_bytes=100), gram(own, budget_bytes=100))


# --- which entries are weights


def test_a_checkpoint_or_a_model_tells_weights_from_buffers(tmp_path):
    model = BY_NAME["cnn_batchnorm"].model()
    model.register_buffer("kernel", torch.ones(2))
    weights = tuple(name for name, _ in model.named_parameters())
    own = [save_checkpoint(tmp_path, model, step=0, epoch=0)]
    bare = [Checkpoint(own[0].path, 0, 0)]
    assert set(parameter_names(own)) == set(weights)
    assert set(parameter_names(bare)) == {*weights, "kernel"}  # nobody says that it is none
    assert parameter_names(bare, model) == weights
    data = BY_NAME["cnn_batchnorm"].data()
    assert parameter_names(bare, Objective(model, data, parameters="head")) == ("head.weight", "head.bias")
    with pytest.raises(ValueError, match=r"lacks 0\.weight, a parameter of the model; it has"):
        parameter_names(own, nn.Sequential(nn.Linear(2, 1)))


def test_tied_weights_count_once(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    first = save_checkpoint(tmp_path, model, step=0, epoch=0)
    nn.init.ones_(model[0].weight)
    second = save_checkpoint(tmp_path, model, step=1, epoch=0)
    assert parameter_names([first], model) == parameter_names([first]) == ("0.weight",)
    expected = (1 - first.load()["0.weight"].double()).square().sum()
    assert float(gram([first, second])[1, 1]) == pytest.approx(float(expected))


# --- sketches


def test_sketches_stand_for_weights(tmp_path):
    """Whole checkpoints among sketches are sketched too; the products are the sketches' own."""
    whole = path_of(tmp_path / "whole", n=4)
    for checkpoint in whole:
        weights = load_parameters(checkpoint, NAMES)
        kept = {SKETCH: sketch(weights, 8)} if checkpoint.step % 2 else checkpoint.load()
        save_checkpoint(tmp_path / "mixed", kept, step=checkpoint.step, epoch=0)
    mixed = readable(list_checkpoints(tmp_path / "mixed"))
    rows = torch.stack([sketch(load_parameters(checkpoint, NAMES), 8).double() for checkpoint in whole])
    for reference in (0, 1):
        expected = (rows - rows[reference]) @ (rows - rows[reference]).T
        torch.testing.assert_close(gram(mixed, reference=reference), expected)
    with pytest.raises(ValueError, match="only a sketch"):
        combine(mixed, torch.ones(1, 4), names=NAMES)
    assert parameter_names(mixed[1:2]) == (SKETCH,)
    save_checkpoint(tmp_path / "mixed", {SKETCH: torch.ones(9)}, step=9, epoch=0)
    for fail in (readable, gram):
        with pytest.raises(ValueError, match=r"step_00000009.*(?:another model|can't be compared)"):
            fail(list_checkpoints(tmp_path / "mixed"))


# --- bad input


def test_damaged_files_stop_or_are_left_out(tmp_path, caplog):
    checkpoints = path_of(tmp_path)
    whole = checkpoints[1].path.read_bytes()
    checkpoints[1].path.write_bytes(whole[:-9])
    checkpoints[2].path.unlink()
    torch.save({"w": nn.Linear(1, 1)}, tmp_path / "code.pt")
    checkpoints.append(Checkpoint(tmp_path / "code.pt", 9, 9))
    for name, kept in (("step_00000001", checkpoints), ("step_00000002", checkpoints[2:])):
        with pytest.raises(ValueError, match=rf"{name}.*damaged='skip'"):
            readable(kept)
        with pytest.raises((ValueError, FileNotFoundError), match=name):
            gram(kept, reference=state(0), names=NAMES)
    with caplog.at_level(logging.WARNING):
        assert [checkpoint.step for checkpoint in readable(checkpoints, damaged="skip")] == [0, 3, 4]
    assert [record.args[0] for record in caplog.records] == [1, 2, 9]
    with pytest.raises(ValueError, match=r"damaged='ignore' is not one of 'stop', 'skip'"):
        readable(checkpoints, damaged="ignore")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("bias"), r"it has no bias, the other bias \(5,\)"),
        (lambda s: s.update(head=torch.zeros(2)), r"it has head \(2,\), the other no head"),
        (lambda s: s.update(bias=torch.zeros(6)), r"it has bias \(6,\), the other bias \(5,\)"),
    ],
)
def test_the_first_difference_between_models_is_named(tmp_path, change, told):
    checkpoints = path_of(tmp_path, n=2)
    other = state(7)
    change(other)
    checkpoints.append(save_checkpoint(tmp_path, other, step=7, epoch=0))
    for damaged in ("stop", "skip"):
        with pytest.raises(ValueError, match=f"step_00000007.*another model than .*step_00000000.*{told}"):
            readable(checkpoints, damaged=damaged)
    if "head" not in other:
        with pytest.raises(ValueError, match=r"step_00000007.*bias"):
            gram(checkpoints, names=NAMES)


def test_buffers_may_differ(tmp_path):
    checkpoints = path_of(tmp_path, n=2)
    other = state(7)
    del other["norm.running_mean"], other["seen"]
    save_file(other, tmp_path / "plain.safetensors")
    checkpoints.append(Checkpoint(tmp_path / "plain.safetensors", 7, -1))
    assert len(readable(checkpoints)) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("budget", [1, 5 * 8 * 10, None])
def test_weights_that_are_no_numbers_are_named(tmp_path, value, budget):
    checkpoints = path_of(tmp_path)
    bad = state(2)
    bad["bias"][3] = value
    save_checkpoint(tmp_path, bad, step=2, epoch=0)
    told = r"step_00000002\.safetensors has NaN or infinite weights in bias"
    with pytest.raises(ValueError, match=told):
        gram(checkpoints, budget_bytes=budget)
    with pytest.raises(ValueError, match=told):
        load_parameters(checkpoints[2], NAMES)


def test_nothing_to_compare():
    with pytest.raises(ValueError, match="there are no checkpoints"):
        gram([])
