"""A state that does not fit a model is refused whole, with every misfit named; one that fits is widened."""

import pytest
import torch

from lltoolkit.tensors.restore import restore
from tests.tensors.test_checkpoints import Tied, assert_same, moved


def test_every_misfit_is_named_and_nothing_moves():
    model = moved()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    del state["norm.bias"], state["norm.num_batches_tracked"]
    state |= {"decode.bias": torch.zeros(4), "head.weight": torch.zeros(2, 3), "norm.weight": torch.zeros(3).double()}
    state["decode.weight"] = state["decode.weight"] + 1
    with pytest.raises(ValueError, match="does not fit this Tied") as caught:
        restore(model, state, source="weights.pt")
    for told in (
        "missing norm.bias (3,)",
        "extra head.weight (2, 3)",
        "misshapen decode.bias: (4,) in the file, (3,) in the model",
        "norm.weight is torch.float64",
        "decode.weight differs from encode.weight",
    ):
        assert told in str(caught.value)
    assert "num_batches_tracked" not in str(caught.value)
    assert_same(before, model.state_dict())


def test_narrow_types_widen_and_one_tied_name_is_enough():
    model = moved()
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    del state["encode.weight"]
    other = restore(Tied(), state, source="half")
    assert other.encode.weight.dtype == torch.float32
    assert torch.equal(other.encode.weight, model.encode.weight.half().float())
