import copy
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lltoolkit.zoo import MODELS, build_model, load_data, load_weights, model_names
from lltoolkit.zoo.models import ResNet

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def n_params(model):
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(
    ("depth", "accuracy", "loss"), [(20, 0.91726, 0.37551), (56, 0.93262, 0.33421)], ids=["resnet20", "resnet56"]
)
def test_published_weights_give_their_published_figures(depth, accuracy, loss):
    weights = SHARED / f"cifar10_resnet{depth}_optionA.safetensors"
    if not weights.exists():
        pytest.skip(f"{weights.name} is not in ../shared/data")
    x, y = load_data(SHARED / "cifar10_exact_subset.npz", normalize="imagenet")["test"]
    model = load_weights(build_model(f"resnet{depth}"), weights).eval()
    with torch.no_grad():
        logits = model(x).double()
    assert (logits.argmax(1) == y).double().mean().item() == pytest.approx(accuracy, abs=5e-6)
    assert nn.functional.cross_entropy(logits, y).item() == pytest.approx(loss, abs=5e-6)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("resnet20", {}, 269_722),
        ("resnet56", {}, 853_018),
        ("resnet110", {}, 1_727_962),
        ("resnet56", {"shortcut": "none"}, 853_018),
        ("densenet121", {}, 6_956_298),
        ("vgg9", {}, 2_789_706),
        ("resnet20", {"shortcut": "B"}, 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64)),
        ("mlp2", {"width": 2, "in_channels": 1, "input_size": 8}, 64 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10),
        ("resnet18", {"n_classes": 1000}, 11_689_512),
    ],
)
def test_numbers_of_parameters_are_those_of_the_papers(name, options, expected):
    assert n_params(build_model(name, **options)) == expected


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), ((9, 14), 2), (32, 3)])
@pytest.mark.parametrize("name", ["resnet8", "vgg9", "densenet121", "mlp2"])
def test_any_size_from_8_and_any_number_of_channels(name, size, channels):
    model = build_model(name, in_channels=channels, input_size=size, n_classes=7).eval()
    height, width = (size, size) if isinstance(size, int) else size
    with torch.no_grad():
        assert model(torch.randn(2, channels, height, width)).shape == (2, 7)


def test_shortcuts_do_what_they_say():
    """Blocks whose last batch norm is zero pass on their shortcut alone: the identity, or nothing."""
    x = torch.rand(2, 16, 8, 8)
    for shortcut in ("A", "B", "none"):
        block = build_model("resnet8", shortcut=shortcut).layer1[0]
        nn.init.zeros_(block.bn2.weight)
        torch.testing.assert_close(block(x), torch.zeros_like(x) if shortcut == "none" else x)
    block = build_model("resnet8").layer2[0]
    nn.init.zeros_(block.bn2.weight)
    out = block(x)
    assert out.shape == (2, 32, 4, 4)
    torch.testing.assert_close(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_initialization_is_the_papers():
    model = build_model("vgg9")
    conv = model.features[10].weight
    assert conv.std().item() == pytest.approx((2 / conv[0].numel()) ** 0.5, rel=0.05)
    assert model.fc[0].weight.std().item() == pytest.approx(1e-3, rel=0.05)
    assert not model.classifier.bias.any()


def test_seed_decides_the_weights():
    for name in ("resnet8", "mlp"):
        models = []
        for _ in range(2):
            with torch.random.fork_rng():
                torch.manual_seed(3)
                models.append(build_model(name))
        assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))


def test_config_builds_the_same_network():
    model = build_model("resnet20", shortcut="B", width=2, in_channels=1, input_size=8)
    assert build_model(**model.zoo_config).state_dict().keys() == model.state_dict().keys()
    assert copy.deepcopy(model).zoo_config == model.zoo_config


def test_models_of_torchvision():
    model = build_model("squeezenet1_1", in_channels=1, n_classes=4, input_size=64)
    assert model(torch.zeros(1, 1, 64, 64)).shape == (1, 4)
    assert not isinstance(build_model("resnet50"), ResNet)
    assert set(MODELS) < set(model_names())


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("vgg99", {}, "Did you mean 'vgg9'"),
        ("resnet57", {}, "the nearest are resnet56 and resnet62"),
        ("resnet20", {"shortcut": "C"}, "shortcut='C' is not one of 'A', 'B', 'none'"),
        ("vgg9", {"shortcut": "none"}, "means nothing to 'vgg9'"),
        ("densenet121", {"width": 2}, "means nothing to 'densenet121'"),
        ("resnet50", {"shortcut": "none"}, "means nothing to 'resnet50'"),
        ("resnet20", {"width": 0}, "width=0"),
        ("resnet20", {"n_classes": 2.5}, "n_classes=2.5"),
        ("resnet20", {"input_size": 7}, "below 8x8"),
        ("alexnet", {"input_size": 32}, "does not take images of 32x32"),
    ],
)
def test_bad_options(name, options, told):
    with pytest.raises(ValueError, match=told):
        build_model(name, **options)


@pytest.mark.parametrize("form", ["safetensors", "plain.pt", "wrapped.th", "parallel.pth"])
def test_weights_load_from_every_form(tmp_path, form):
    source, target = build_model("resnet8"), build_model("resnet8")
    state = source.state_dict()
    path = tmp_path / f"weights.{form}"
    if form == "safetensors":
        save_file(state, path)
    elif form == "plain.pt":
        torch.save({name: tensor for name, tensor in state.items() if "num_batches" not in name}, path)
    elif form == "wrapped.th":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    assert load_weights(target, path) is target
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_weights_of_another_model_change_nothing(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(build_model("resnet14", n_classes=3).state_dict(), path)
    model = build_model("resnet8")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="does not fit this ResNet") as caught:
        load_weights(model, path)
    extra = load_file(path).keys() - before.keys()
    assert all(f"extra {name} " in str(caught.value) for name in extra)
    assert "misshapen linear.bias: (3,) in the file, (10,) in the model" in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_bad_weight_files(tmp_path):
    model = build_model("mlp")
    for name in ("weights.safetensors", "weights.pt"):
        path = tmp_path / name
        with pytest.raises(FileNotFoundError, match="there is no file"):
            load_weights(model, path)
        save_file(model.state_dict(), path) if name.endswith("tensors") else torch.save(model.state_dict(), path)
        for content in (path.read_bytes()[:-2000], b""):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=re.escape(name)):
                load_weights(model, path)
    torch.save([model.state_dict()], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds list, no state dict"):
        load_weights(model, tmp_path / "list.pt")
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "pickled.pt")
    with pytest.raises(ValueError, match="it could run code"):
        load_weights(model, tmp_path / "pickled.pt")
    with pytest.raises(ValueError, match=r"the suffix of path='\.h5'"):
        load_weights(model, tmp_path / "weights.h5")
