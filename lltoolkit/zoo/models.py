"""The paper's networks, each in its own few lines, and the classification models of torchvision by their names.

All of them take images of 8x8 and larger and any number of channels. A built model remembers how in ``zoo_config``.
"""

import logging
import re
from collections.abc import Callable, Iterable
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from lltoolkit.errors import did_you_mean, require_choice
from lltoolkit.tensors.restore import restore
from lltoolkit.tensors.weight_files import read_weights
from lltoolkit.zoo.shim import import_torchvision

Shortcut: TypeAlias = Literal["A", "B", "none"]
Size: TypeAlias = int | tuple[int, int]

SHORTCUTS = ("A", "B", "none")
MODELS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "vgg9", "densenet121", "mlp")
SMALLEST = 8  # pixels; below, three halvings leave nothing

log = logging.getLogger(__name__)


class ResNet(nn.Module):
    """ResNet for small images: a stem and three stages of ``n`` blocks, depth ``6n + 2``.

    He et al. (2016), Deep Residual Learning for Image Recognition, section 4.2; widened as in Li et al. (2018).
    """

    def __init__(self, depth: int, shortcut: Shortcut, width: int, n_classes: int, in_channels: int) -> None:
        super().__init__()
        n_blocks = (depth - 2) // 6
        channels = [16 * width, 32 * width, 64 * width]
        self.conv1 = _conv3x3(in_channels, channels[0])
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.layer1 = _stage(channels[0], channels[0], n_blocks, 1, shortcut)
        self.layer2 = _stage(channels[0], channels[1], n_blocks, 2, shortcut)
        self.layer3 = _stage(channels[1], channels[2], n_blocks, 2, shortcut)
        self.linear = nn.Linear(channels[2], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to logits ``(B, n_classes)``."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, with or without a shortcut around them."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        changes = stride != 1 or in_channels != channels
        self.shortcut: nn.Module | None = None if shortcut == "none" else nn.Sequential()
        if shortcut == "A" and changes:
            self.shortcut = PaddingShortcut(channels - in_channels, stride)
        if shortcut == "B" and changes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, channels, H / stride, W / stride)``, rounded up."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.shortcut is not None:
            out = out + self.shortcut(x)
        return functional.relu(out)


class PaddingShortcut(nn.Module):
    """Shortcut A, without weights: every second pixel, and new channels of zeros on both sides of the old ones."""

    def __init__(self, n_new: int, stride: int) -> None:
        super().__init__()
        self.before, self.after, self.stride = n_new // 2, n_new - n_new // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad ``(B, C, H, W)``."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def _conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)


def _stage(in_channels: int, channels: int, n_blocks: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride, shortcut)
    return nn.Sequential(first, *[BasicBlock(channels, channels, 1, shortcut) for _ in range(n_blocks - 1)])


class VGG9(nn.Module):
    """VGG-9 of Li et al. (2018): seven convolutions with bias and batch norm, one hidden layer with batch norm."""

    def __init__(self, n_classes: int, in_channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        height, width = size
        for stage in ([64, 64], [128, 128], [256, 256, 256]):
            for channels in stage:
                layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
                in_channels = channels
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            height, width = (height + 1) // 2, (width + 1) // 2
        self.features = nn.Sequential(*layers)
        self.fc = nn.Sequential(nn.Linear(256 * height * width, 256), nn.BatchNorm1d(256), nn.ReLU())
        self.classifier = nn.Linear(256, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` of the size it was built for to logits ``(B, n_classes)``."""
        return self.classifier(self.fc(self.features(x).flatten(1)))


class DenseNet(nn.Module):
    """DenseNet-BC with a 3x3 stem for small images; blocks of 6, 12, 24 and 16 layers make DenseNet-121.

    Huang et al. (2017), Densely Connected Convolutional Networks, section 3.
    """

    def __init__(self, blocks: Iterable[int], growth: int, n_classes: int, in_channels: int) -> None:
        super().__init__()
        channels = 2 * growth
        self.conv1 = _conv3x3(in_channels, channels)
        stages: list[nn.Module] = []
        for n_layers in blocks:
            if stages:
                stages.append(Transition(channels))
                channels //= 2
            stages.append(nn.Sequential(*[DenseLayer(channels + i * growth, growth) for i in range(n_layers)]))
            channels += n_layers * growth
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to logits ``(B, n_classes)``."""
        x = functional.relu(self.bn(self.stages(self.conv1(x))))
        return self.linear(x.mean(dim=(2, 3)))


class DenseLayer(nn.Module):
    """Bottleneck layer that puts its `growth` new channels before those it was given."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = _conv3x3(4 * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, in_channels + growth, H, W)``."""
        out = self.conv1(functional.relu(self.bn1(x)))
        out = self.conv2(functional.relu(self.bn2(out)))
        return torch.cat([out, x], dim=1)


class Transition(nn.Module):
    """Half the channels, half the pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C / 2, H / 2, W / 2)``, rounded down."""
        return functional.avg_pool2d(self.conv(functional.relu(self.bn(x))), 2)


def _mlp(n_hidden: int, units: int, n_classes: int, n_inputs: int) -> nn.Sequential:
    sizes = [n_inputs] + [units] * n_hidden
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], n_classes))


def _initialize(model: nn.Module) -> nn.Module:
    """Draw the weights as the paper's code does: He normal by fan-in, linear layers with std 0.001, biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1e-3)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


def model_names() -> list[str]:
    """List every name that ``build_model`` knows; ResNets of other depths ``6n + 2`` go by ``resnet<depth>``.

    Returns
    -------
    list of str
        The zoo's own networks, then torchvision's.

    Examples
    --------
    >>> model_names()[:3]
    ['resnet20', 'resnet32', 'resnet44']
    """
    return [*MODELS, *(name for name in _torchvision_names() if name not in MODELS)]


def build_model(
    name: str,
    *,
    shortcut: Shortcut = "A",
    width: int = 1,
    n_classes: int = 10,
    in_channels: int = 3,
    input_size: Size = 32,
) -> nn.Module:
    """Build a network by its name, with fresh weights from torch's global random numbers.

    Parameters
    ----------
    name : str
        ``"resnet<depth>"`` for a depth of ``6n + 2`` (20, 32, 44, 56, 110, ...); ``"vgg9"``; ``"densenet121"`` (the one
        for small images); ``"mlp"`` with one hidden layer of 64 units, ``"mlp<n>"`` with ``n``; or a classification
        model of torchvision. ``resnet50`` and ``resnet152`` are torchvision's, with bottleneck blocks.
    shortcut : {"A", "B", "none"}
        For ResNets, where the shape changes: subsampled and padded with zeros (A; the published CIFAR-10 weights), a
        1x1 convolution with batch norm (B; the paper's code), or no shortcut in any block.
    width : int
        Times as many channels, for ResNets, or units, for MLPs.
    n_classes, in_channels : int
        Of the data.
    input_size : int or (int, int)
        Height and width of the images in pixels, at least 8.

    Returns
    -------
    nn.Module
        On the CPU in training mode, with ``zoo_config``, a dict of these options.

    Raises
    ------
    ValueError
        For an unknown name, an option that the network does not take, or a size it can't be built for.

    References
    ----------
    Li et al. (2018), Visualizing the Loss Landscape of Neural Nets, and the initialization of its published code.

    Examples
    --------
    >>> model = build_model("resnet20", shortcut="none", in_channels=1, input_size=8)
    >>> model(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    require_choice("shortcut", shortcut, SHORTCUTS)
    for option, value in (("width", width), ("n_classes", n_classes), ("in_channels", in_channels)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{option}={value!r}: give a whole number of at least 1.")
    width, n_classes, in_channels = int(width), int(n_classes), int(in_channels)  # numpy's go into no JSON
    height, breadth = size = _height_and_width(input_size)
    if min(size) < SMALLEST:
        raise ValueError(
            f"input_size={input_size!r}: images of {height}x{breadth} are below {SMALLEST}x{SMALLEST} pixels."
        )
    family, number, takes = _parse(name)
    for option, given, default in (("shortcut", shortcut, "A"), ("width", width, 1)):
        if option not in takes and given != default:
            takers = "ResNets take it" if option == "shortcut" else "ResNets and MLPs take it"
            raise ValueError(f"{option}={given!r} means nothing to {name!r}: only {takers}. Leave it out.")
    builders: dict[str, Callable[[], nn.Module]] = {
        "resnet": lambda: _initialize(ResNet(number, shortcut, width, n_classes, in_channels)),
        "vgg": lambda: _initialize(VGG9(n_classes, in_channels, size)),
        "densenet": lambda: _initialize(DenseNet((6, 12, 24, 16), 32, n_classes, in_channels)),
        "mlp": lambda: _mlp(number, 64 * width, n_classes, in_channels * height * breadth),
        "torchvision": lambda: _torchvision(name, n_classes, in_channels, size),
    }
    model = builders[family]()
    options = {"shortcut": shortcut, "width": width}
    model.zoo_config = {  # type: ignore[assignment]
        "name": name,
        **{option: value for option, value in options.items() if option in takes},
        "n_classes": n_classes,
        "in_channels": in_channels,
        "input_size": height if height == breadth else list(size),
    }
    return model


def _height_and_width(size: Size) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, Integral) else tuple(size) if isinstance(size, list | tuple) else ()
    if len(pair) != 2 or not all(isinstance(pixels, Integral) for pixels in pair):
        raise ValueError(f"input_size={size!r}: give a whole number of pixels, or a pair (height, width).")
    return int(pair[0]), int(pair[1])


def _parse(name: str) -> tuple[str, int, tuple[str, ...]]:
    """Return the family of a name, its number (depth, hidden layers) and the options that the family takes."""
    if name == "vgg9":
        return "vgg", 9, ()
    if name == "densenet121":
        return "densenet", 121, ()
    if match := re.fullmatch(r"mlp([1-9]\d*)?", name):
        return "mlp", int(match[1] or 1), ("width",)
    match = re.fullmatch(r"resnet(\d+)", name)
    depth = int(match[1]) if match else 0
    if name in MODELS or (depth >= 8 and depth % 6 == 2 and name not in _torchvision_names()):
        return "resnet", depth, ("shortcut", "width")
    if name in _torchvision_names():
        return "torchvision", 0, ()
    if match:
        below = max(8, depth - (depth - 2) % 6)
        raise ValueError(
            f"name={name!r}: a ResNet for small images has a depth of 6n + 2; the nearest are resnet{below} and "
            f"resnet{below + 6}. torchvision has resnet18, resnet34, resnet50, resnet101 and resnet152."
        )
    raise ValueError(
        f"name={name!r} is not one of {', '.join(MODELS)}, resnet<6n+2>, mlp<n> or a classification model of "
        f"torchvision (lltoolkit.zoo.model_names() lists them).{did_you_mean(name, model_names())}"
    )


def _torchvision_names() -> list[str]:
    models = import_torchvision().models
    return models.list_models(module=models)


def _torchvision(name: str, n_classes: int, in_channels: int, size: tuple[int, int]) -> nn.Module:
    options: dict[str, Any] = {"num_classes": n_classes}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}  # one output, as all others have
    if name.startswith("vit_"):
        options["image_size"] = size[0]
    try:
        model = import_torchvision().models.get_model(name, weights=None, **options)
        if in_channels != 3:
            _replace_stem(model, in_channels)
        model.eval()  # so that the trial draws nothing and moves no statistics
        with torch.no_grad():
            model(torch.zeros(1, in_channels, *size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"torchvision's {name} does not take images of {size[0]}x{size[1]}: {error}. It is made for 224x224; "
            f"enlarge the images, or take one of {', '.join(MODELS)}."
        ) from error
    return model.train()


def _replace_stem(model: nn.Module, in_channels: int) -> None:
    """Put a convolution for other channels in the place of the first one."""
    name, old = next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    parent, _, child = name.rpartition(".")
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    setattr(model.get_submodule(parent), child, new)


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load trained weights into `model`, strictly.

    Parameters
    ----------
    model : nn.Module
        Changed in place; where anything fails, it is as it was.
    path : str or Path
        A ``.safetensors`` file, or a state dict of torch (``.pt``, ``.pth``, ``.th``, ``.bin``, ``.ckpt``), also one
        inside of ``{"state_dict": ...}``; read with ``weights_only=True``, so that no code in it can run. The prefixes
        ``module.`` and ``_orig_mod.`` are taken off. ``num_batches_tracked`` may be absent.

    Returns
    -------
    nn.Module
        The same object.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, of another format, or holds weights for another model: then naming every missing,
        extra or misshapen key.

    Examples
    --------
    >>> import tempfile
    >>> a, b = (build_model("mlp", in_channels=1, input_size=8) for _ in range(2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"state_dict": a.state_dict()}, f"{folder}/a.pt")
    ...     torch.equal(load_weights(b, f"{folder}/a.pt")[1].weight, a[1].weight)
    True
    """
    path = Path(path)
    return restore(model, read_weights(path), source=str(path))
