"""Data sets as tensors: read once, scaled, normalized, ready for a device."""

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import platformdirs
import torch
from torch import Tensor

from lltoolkit.errors import did_you_mean, require_choice
from lltoolkit.zoo.shim import import_torchvision

Split: TypeAlias = tuple[Tensor, Tensor]
Numbers: TypeAlias = float | Sequence[float]
Normalize: TypeAlias = Literal["default", "cifar10", "imagenet", "none"] | tuple[Numbers, Numbers]

NORMALIZATIONS: dict[str, tuple[Numbers, Numbers]] = {
    # Li et al. (2018), as their published code has it; on the scale [0, 1].
    "cifar10": ([125.3 / 255, 123.0 / 255, 113.9 / 255], [63.0 / 255, 62.1 / 255, 66.7 / 255]),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "none": (0.0, 1.0),
}
N_DIGITS_TEST = 360  # of 1,797: one fifth
IMAGE_CHANNELS = (1, 3, 4)  # what a last axis of images in NHWC order can be
KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class _Published:
    dataset: str  # its class in torchvision.datasets
    n_classes: int
    normalize: str | tuple[Numbers, Numbers]


PUBLISHED = {
    "cifar10": _Published("CIFAR10", 10, "cifar10"),
    "cifar100": _Published("CIFAR100", 100, ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762])),
    "mnist": _Published("MNIST", 10, (0.1307, 0.3081)),
    "fashion_mnist": _Published("FashionMNIST", 10, (0.2860, 0.3530)),
}
NAMES = ("digits", *PUBLISHED)


class LoadedData(dict[str, Split]):
    """The splits ``{"train": (x, y), "test": (x, y)}``, with what was done to them.

    ``x`` is float32 of shape ``(N, C, H, W)``, normalized; ``y`` is int64 of shape ``(N,)``, in
    ``[0, n_classes - 1]``.

    Attributes
    ----------
    name : str
        The data set's name, or the stem of its file.
    normalize : str
        How it was normalized, for the record: ``"cifar10"``, ``"none"``, ``"mean=0.305 std=0.376"``, ...
    mean, std : Tensor
        Shape ``(C,)``, on the scale [0, 1] of the raw images: ``x = (raw - mean) / std``.
    n_classes : int
        Number of classes.
    """

    def __init__(
        self, splits: dict[str, Split], *, name: str, normalize: str, mean: Tensor, std: Tensor, n_classes: int
    ) -> None:
        super().__init__(splits)
        self.name = name
        self.normalize = normalize
        self.mean = mean
        self.std = std
        self.n_classes = n_classes

    def __repr__(self) -> str:
        shapes = ", ".join(f"{split}={tuple(x.shape)}" for split, (x, _) in self.items())
        return f"LoadedData({self.name!r}, {shapes}, n_classes={self.n_classes}, normalize={self.normalize!r})"


def load_data(
    name_or_path: str | Path,
    *,
    normalize: Normalize = "default",
    root: str | Path | None = None,
    download: bool = True,
) -> LoadedData:
    """Load a data set by its name, or from an ``.npz`` file.

    Parameters
    ----------
    name_or_path : str or Path
        ``"digits"`` (1,797 real 8x8 images that come with scikit-learn: needs no network), ``"cifar10"``,
        ``"cifar100"``, ``"mnist"``, ``"fashion_mnist"``, or the path of an ``.npz`` with ``x_train``, ``y_train``,
        ``x_test`` and ``y_test``: images as uint8 in [0, 255] or as floats, taken as they are, in the order NCHW,
        NHWC or NHW (gray); labels as whole numbers from 0.
    normalize : {"default", "cifar10", "imagenet", "none"} or (mean, std)
        ``"default"``: the data set's own published numbers (CIFAR-10: the paper's); mean and standard deviation of
        each channel of the training images for digits and files. Numbers are on the scale [0, 1], one for all
        channels or one for each.
    root : str or Path, optional
        Where downloaded data sets lie; the user's cache folder unless given.
    download : bool
        Fetch a data set that is not in `root`.

    Returns
    -------
    LoadedData
        ``{"train": (x, y), "test": (x, y)}``; x float32 ``(N, C, H, W)``, y int64 ``(N,)``.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or a data set is neither in `root` nor can be downloaded.
    ValueError
        For an unknown name, a normalization that does not fit, or a file that holds no data set.

    References
    ----------
    Li et al. (2018), Visualizing the Loss Landscape of Neural Nets: the mean and std of CIFAR-10.

    Examples
    --------
    >>> data = load_data("digits")
    >>> x, y = data["train"]
    >>> x.shape, y.dtype, data.n_classes
    (torch.Size([1437, 1, 8, 8]), torch.int64, 10)
    """
    if isinstance(normalize, str):
        require_choice("normalize", normalize, ["default", *NORMALIZATIONS])
    name = str(name_or_path)
    if name == "digits":
        return _normalized("digits", _digits(), 10, normalize, None)
    if name in PUBLISHED:
        known = PUBLISHED[name]
        return _normalized(name, _published(name, root, download), known.n_classes, normalize, known.normalize)
    path = Path(name_or_path)
    if path.suffix != ".npz" and not path.exists():
        raise ValueError(
            f"name_or_path={name!r} is not one of {', '.join(map(repr, NAMES))}, nor an .npz file."
            + did_you_mean(name, NAMES)
        )
    splits = _npz(path)
    n_classes = int(max(y.max() for _, y in splits.values())) + 1
    return _normalized(path.stem, splits, n_classes, normalize, None)


def _normalized(
    name: str, splits: dict[str, Split], n_classes: int, normalize: Normalize, default: str | tuple | None
) -> LoadedData:
    n_channels = splits["train"][0].shape[1]
    chosen = default if normalize == "default" else normalize
    if chosen is None:
        pixels = splits["train"][0].transpose(0, 1).flatten(1).double()
        # A constant channel becomes 0 everywhere, not NaN.
        mean, std = pixels.mean(dim=1), pixels.std(dim=1, correction=0)
        std = torch.where(std > 0, std, 1.0)
    else:
        mean, std = _per_channel(NORMALIZATIONS[chosen] if isinstance(chosen, str) else chosen, n_channels, chosen)
    mean, std = mean.float(), std.float()
    done = {}
    for split, (x, y) in splits.items():
        done[split] = (x.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1)), y)
    told = chosen if isinstance(chosen, str) else f"mean={_told(mean)} std={_told(std)}"
    return LoadedData(done, name=name, normalize=told, mean=mean, std=std, n_classes=n_classes)


def _per_channel(pair: object, n_channels: int, given: object) -> tuple[Tensor, Tensor]:
    try:
        mean, std = (torch.as_tensor(numbers, dtype=torch.float64).flatten() for numbers in pair)  # type: ignore[attr-defined]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"normalize={given!r} is no name and no pair (mean, std) of numbers.") from error
    for numbers in (mean, std):
        if len(numbers) not in (1, n_channels):
            raise ValueError(
                f"normalize={given!r} has {len(numbers)} channels, the images have {n_channels}. Use "
                "normalize='default', or a pair (mean, std) with one number for each channel."
            )
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise ValueError(f"normalize={given!r}: the mean must be finite, the std finite and above 0.")
    return mean.expand(n_channels), std.expand(n_channels)


def _told(numbers: Tensor) -> str:
    return ",".join(f"{number:.6g}" for number in numbers.tolist())


def _digits() -> dict[str, Split]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)  # drawn with 17 gray levels
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target.astype(np.int64), test_size=N_DIGITS_TEST, stratify=digits.target, random_state=0
    )
    return {
        "train": (torch.from_numpy(x_train), torch.from_numpy(y_train)),
        "test": (torch.from_numpy(x_test), torch.from_numpy(y_test)),
    }


def _published(name: str, root: str | Path | None, download: bool) -> dict[str, Split]:
    import_torchvision()
    from torchvision import datasets

    folder = Path(root) if root is not None else Path(platformdirs.user_cache_dir("lltoolkit"))
    folder.mkdir(parents=True, exist_ok=True)
    make = getattr(datasets, PUBLISHED[name].dataset)
    try:
        read = {split: make(folder, train=split == "train", download=download) for split in ("train", "test")}
    except (OSError, RuntimeError) as error:  # URLError is an OSError; torchvision raises RuntimeError for the rest
        raise FileNotFoundError(
            f"{name} is not in {folder}{' and could not be downloaded' if download else ''} ({error}). "
            + ("" if download else "Pass download=True; or ")
            + "give root=, a folder where torchvision has put it before; or use load_data('digits'), which needs no "
            "network."
        ) from error
    return {
        split: (_as_images(np.asarray(kept.data), f"{name} {split}"), torch.as_tensor(kept.targets, dtype=torch.int64))
        for split, kept in read.items()
    }


def _npz(path: Path) -> dict[str, Split]:
    if not path.is_file():
        nearby = [other.name for other in path.parent.glob("*.npz")] if path.parent.is_dir() else []
        raise FileNotFoundError(f"there is no file {path}.{did_you_mean(path.name, nearby)}")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key in KEYS}
            held = ", ".join(file.files) or "nothing"
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, TypeError, AttributeError) as error:
        # numpy tells a damaged file, one that is no zip at all and one of pickled objects by different types
        raise ValueError(
            f"{path} is damaged, cut short or no .npz file of plain arrays ({type(error).__name__}: {error}). "
            f"Write it with numpy.savez_compressed(path, {', '.join(f'{key}=...' for key in KEYS)})."
        ) from error
    if missing := [key for key in KEYS if key not in arrays]:
        raise ValueError(f"{path} lacks {', '.join(missing)}; it holds {held}. The four {', '.join(KEYS)} are needed.")
    splits = {}
    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        if x.ndim == 0 or len(x) == 0:
            raise ValueError(f"{path}: x_{split} is empty; every split needs examples.")
        y = _as_labels(y, f"{path}: y_{split}")
        if len(x) != len(y):
            raise ValueError(
                f"{path}: x_{split} has {len(x)} examples, y_{split} has {len(y)}; the numbers must agree."
            )
        splits[split] = (_as_images(x, f"{path}: x_{split}"), y)
    train, test = (tuple(splits[split][0].shape[1:]) for split in ("train", "test"))
    if train != test:
        raise ValueError(
            f"{path}: the images of x_train are {train} (channels, height, width), those of x_test {test}."
        )
    return splits


def _as_images(x: np.ndarray, where: str) -> Tensor:
    """Bring images into float32 NCHW, uint8 into [0, 1]; always a copy."""
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise ValueError(f"{where} has the type {x.dtype}; images are uint8 in [0, 255] or floats, taken as they are.")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim != 4:
        raise ValueError(f"{where} has the shape {x.shape}; wanted is NCHW, NHWC or, for gray images, NHW.")
    elif x.shape[1] not in IMAGE_CHANNELS and x.shape[3] in IMAGE_CHANNELS:
        x = x.transpose(0, 3, 1, 2)
    images = torch.from_numpy(np.array(x, dtype=np.float32, order="C"))
    if x.dtype == np.uint8:
        return images.div_(255)
    if not images.isfinite().all():
        raise ValueError(f"{where} holds {int((~images.isfinite()).sum())} values that are NaN or infinite.")
    return images


def _as_labels(y: np.ndarray, where: str) -> Tensor:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise ValueError(f"{where} has the shape {y.shape}; wanted is one label for each example, (N,).")
    if y.dtype.kind not in "iu":
        raise ValueError(f"{where} has the type {y.dtype}; class labels are whole numbers. Use y.astype('int64').")
    if len(y) and int(y.min()) < 0:
        raise ValueError(f"{where} runs from {y.min()} to {y.max()}; class labels begin at 0.")
    return torch.from_numpy(y.astype(np.int64))
