import re

import numpy as np
import pytest
import torch

from lltoolkit.zoo import load_data


def write_npz(path, **changes):
    generator = np.random.default_rng(0)
    arrays = {
        "x_train": generator.integers(0, 256, (6, 3, 8, 9), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 3, 1, 0]),
        "x_test": generator.integers(0, 256, (2, 3, 8, 9), dtype=np.uint8),
        "y_test": np.array([[1], [2]]),
    }
    arrays |= changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return arrays


def test_digits_are_whole_stratified_and_standardized():
    data = load_data("digits")
    assert (len(data["train"][1]), len(data["test"][1])) == (1437, 360)
    raw = torch.cat([x for x, _ in data.values()]) * data.std + data.mean
    assert raw.min() == pytest.approx(0, abs=1e-6)
    assert raw.max() == pytest.approx(1)
    x, y = data["train"]
    assert x.mean().item() == pytest.approx(0, abs=1e-5)
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    shares = [labels.bincount() / len(labels) for _, labels in data.values()]
    assert (shares[0] - shares[1]).abs().max() < 0.005
    assert torch.equal(load_data("digits")["train"][0], x)
    assert data.n_classes == 10
    assert y.dtype == torch.int64


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_npz_is_what_the_formula_says(tmp_path, order):
    arrays = write_npz(tmp_path / "own.npz")
    if order == "NHWC":
        turned = {key: value.transpose(0, 2, 3, 1) for key, value in arrays.items() if key.startswith("x")}
        write_npz(tmp_path / "own.npz", **turned)
    data = load_data(tmp_path / "own.npz")
    raw = arrays["x_train"] / 255
    mean, std = raw.mean(axis=(0, 2, 3)), raw.std(axis=(0, 2, 3))
    expected = (arrays["x_test"] / 255 - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(data["test"][0].numpy(), expected, atol=1e-5)
    assert data["test"][1].tolist() == [1, 2]
    assert (data.name, data.n_classes) == ("own", 4)
    assert data.normalize.startswith("mean=")


def test_named_and_given_normalizations_agree(tmp_path):
    write_npz(tmp_path / "own.npz")
    named = load_data(tmp_path / "own.npz", normalize="cifar10")
    given = load_data(
        tmp_path / "own.npz",
        normalize=([125.3 / 255, 123.0 / 255, 113.9 / 255], [63.0 / 255, 62.1 / 255, 66.7 / 255]),
    )
    assert torch.equal(named["train"][0], given["train"][0])
    assert named.normalize == "cifar10"
    raw = load_data(tmp_path / "own.npz", normalize="none")
    assert raw.normalize == "none"
    assert torch.equal(raw["train"][0], load_data(tmp_path / "own.npz", normalize=(0, 1))["train"][0])


def test_gray_floats_are_taken_as_they_are(tmp_path):
    x = np.linspace(-3, 3, 6 * 8 * 8).reshape(6, 8, 8)
    write_npz(tmp_path / "gray.npz", x_train=x, x_test=x[:2])
    data = load_data(tmp_path / "gray.npz", normalize="none")
    np.testing.assert_allclose(data["train"][0].numpy(), x[:, None].astype(np.float32))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"y_test": None}, "lacks y_test; it holds x_train"),
        ({"x_test": np.zeros((0, 3, 8, 9), np.uint8)}, "x_test is empty"),
        ({"y_train": np.arange(5)}, "x_train has 6 examples, y_train has 5"),
        ({"y_train": np.zeros(6)}, "y_train has the type float64"),
        ({"y_test": np.array([-1, 2])}, "y_test runs from -1 to 2"),
        ({"y_test": np.zeros((2, 2), int)}, "y_test has the shape (2, 2)"),
        ({"x_test": np.zeros((2, 3, 8, 8), np.uint8)}, "those of x_test (3, 8, 8)"),
        ({"x_test": np.zeros((2, 3, 8, 9), np.int64)}, "x_test has the type int64"),
        ({"x_test": np.zeros((2, 9), np.uint8)}, "x_test has the shape (2, 9)"),
        ({"x_test": np.full((2, 3, 8, 9), np.nan)}, "432 values that are NaN"),
        ({"y_test": np.array(["a", "b"], object)}, "damaged, cut short or no .npz"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path, changes, told):
    write_npz(tmp_path / "bad.npz", **changes)
    with pytest.raises(ValueError, match=re.escape(told)):
        load_data(tmp_path / "bad.npz")


def test_damaged_and_missing_files(tmp_path):
    path = tmp_path / "own.npz"
    write_npz(path)
    whole = path.read_bytes()
    for content in (b"", b"not a zip", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"own\.npz is damaged"):
            load_data(path)
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'own\.npz'"):
        load_data(tmp_path / "owm.npz")


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("cifar100x", {}, "Did you mean 'cifar100'"),
        ("digits", {"normalize": "imagnet"}, "Did you mean 'imagenet'"),
        ("digits", {"normalize": "imagenet"}, "has 3 channels, the images have 1"),
        ("digits", {"normalize": (0, 0)}, "std finite and above 0"),
        ("digits", {"normalize": (0, 1, 2)}, "no pair"),
        ("digits", {"normalize": 3}, "no pair"),
    ],
)
def test_bad_arguments(name, options, told):
    with pytest.raises(ValueError, match=told):
        load_data(name, **options)


def test_absent_data_set_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cifar10 is not in .*download=True.*digits"):
        load_data("cifar10", root=tmp_path, download=False)


def test_torchvision_data_sets_come_the_same_way(tmp_path, monkeypatch):
    """A stand-in with torchvision's attributes: no network in tests."""
    from lltoolkit.zoo.shim import import_torchvision

    import_torchvision()
    from torchvision import datasets

    class Fake:
        def __init__(self, root, train, download):
            self.data = np.full((3 if train else 2, 32, 32, 3), 255 if train else 0, np.uint8)
            self.targets = [0, 1, 9][: len(self.data)]

    monkeypatch.setattr(datasets, "CIFAR10", Fake)
    data = load_data("cifar10", root=tmp_path)
    assert data["train"][0].shape == (3, 3, 32, 32)
    assert data.normalize == "cifar10"
    assert data.n_classes == 10
    torch.testing.assert_close(data["test"][0][0, :, 0, 0], -data.mean / data.std)
