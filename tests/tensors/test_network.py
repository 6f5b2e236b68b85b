"""A network comes back from a pickle as it was: values bit for bit, views of one flat tensor, ties."""

import pickle

import cloudpickle
import pytest
import torch
from torch import nn

from lltoolkit.tensors.examples import read_splits
from lltoolkit.tensors.network import Network, loading_on
from tests.models import BY_NAME, TinyTransformer, mlp, seeded

CPU = torch.device("cpu")


def made(model, parameters=None):
    return Network(model, parameters, CPU, torch.float32)


def equal(a, b):
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_the_copy_computes_the_same_bits(case, pickler):
    network = made(case.model())
    network.flat.mul_(1.25)  # not the minimizer: the weights as they now stand are part of it
    batch = read_splits(case.data(), None, 0)["train"]
    copied = pickle.loads(pickler.dumps(network))
    assert copied.flat.tolist() == network.flat.tolist()
    assert equal(copied.theta, network.theta)
    assert equal(copied.buffers, network.buffers)
    assert (copied.n_params, copied.was_half, copied.device) == (network.n_params, network.was_half, CPU)
    assert not any(module.training for module in copied.model.modules())
    assert not any(parameter.requires_grad for parameter in copied.model.parameters())
    for weights in (network.flat.clone(), torch.randn_like(network.flat)):
        network.flat.copy_(weights)
        copied.flat.copy_(weights)  # all of the copy's parameters are views of its flat tensor
        with torch.no_grad():
            expected, found = network(batch.inputs), copied(batch.inputs)
        assert equal({"": expected}, {"": found}) if torch.is_tensor(found) else equal(expected, found)


def test_the_copy_shares_nothing_with_the_network():
    network = made(mlp())
    before = network.flat.clone()
    copied = pickle.loads(pickle.dumps(network))
    copied.flat.zero_()
    assert torch.equal(network.flat, before)
    assert torch.equal(nn.utils.parameters_to_vector(network.model.parameters()), before)


def test_weights_are_written_once():
    network = made(nn.Sequential(*[nn.Linear(64, 64) for _ in range(20)]))
    n_bytes = 4 * network.flat.numel()
    assert 2 * n_bytes < len(pickle.dumps(network)) < 2.2 * n_bytes  # flat and theta


def test_weights_tied_by_object_and_by_storage_stay_tied():
    model = seeded(TinyTransformer, 0)
    twice = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    twice[1].weight.data = twice[0].weight.data
    for network, names in (
        (made(model), ("embedding.weight", "output.weight")),
        (made(twice), ("0.weight", "1.weight")),
    ):
        copied = pickle.loads(pickle.dumps(network))
        first, second = (copied.model.get_parameter(name) for name in names)
        copied.flat.zero_()
        assert not first.any()
        assert not second.any()
        with copied.gradients() as gradient:
            (first.sum() + second.sum()).backward()
            assert gradient().sum() == 2 * first.numel()


def test_chosen_parameters_move_and_the_others_keep_their_values():
    network = made(mlp(), "0[.]weight")
    copied = pickle.loads(pickle.dumps(network))
    copied.flat.zero_()
    assert not copied.model[0].weight.any()
    assert torch.equal(copied.model[2].weight, network.model[2].weight)


def test_buffers_are_the_copys_own():
    network = made(BY_NAME["cnn_batchnorm"].model())
    copied = pickle.loads(pickle.dumps(network))
    moved = {name: buffer + 1 for name, buffer in network.buffers.items()}
    copied.write_buffers(moved)
    assert torch.equal(copied.model.norm.running_mean, moved["norm.running_mean"])
    assert torch.equal(network.model.norm.running_mean, network.buffers["norm.running_mean"])
    assert [module is copied.model.norm for module in copied.batch_norms] == [True]


def test_a_class_of_a_notebook_goes_by_value():
    scope = {"__name__": "__main__"}
    source = """
from torch import nn
class Local(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
    def forward(self, x):
        return self.layer(x)
"""
    exec(source, scope)
    network = made(scope["Local"]())
    assert torch.equal(pickle.loads(cloudpickle.dumps(network)).flat, network.flat)


def test_another_device_may_be_asked_for():
    written = pickle.dumps(made(mlp()))
    with loading_on("meta"):
        copied = pickle.loads(written)
    assert copied.device == torch.device("meta")
    assert {parameter.device.type for parameter in copied.model.parameters()} == {"meta"}
    assert pickle.loads(written).device == CPU
