"""Models and data that the tests share: every shape of input, target and weight that the toolkit accepts.

Each case knows how to measure itself by a second road: `plain` runs a float64 copy one example at a time.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

N_CLASSES = 3
N_TOKENS = 11
PADDING = -100


def seeded(make: Callable[[], Any], seed: int) -> Any:
    """Call `make` with torch seeded, and leave the generator as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


class ConvNet(nn.Module):
    """Convolution, batch norm, a head; the running statistics are those of some data, not 0 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, N_CLASSES)
        with torch.no_grad():
            self.norm.weight.uniform_(0.5, 1.5)
            self.norm.bias.normal_()
            for _ in range(3):
                self(torch.randn(16, 2, 6, 6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.norm(self.conv(x))).mean((2, 3)))


class Vgg(nn.Module):
    """A VGG in small: no shortcuts, max-pooling, dropout before each fully connected layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU()
        )
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(45, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, N_CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class TinyTransformer(nn.Module):
    """One causal block on tokens (B, T); the output layer is the embedding, one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(N_TOKENS, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, dim_feedforward=12, dropout=0.1, batch_first=True)
        self.output = nn.Linear(8, N_TOKENS, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device).triu(1)
        return self.output(self.block(self.embedding(tokens), src_mask=mask))


class LstmClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class TwoInputs(nn.Module):
    """Regression on a vector and an image; its first layer is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 5).requires_grad_(False)
        self.right = nn.Conv2d(1, 2, 3)
        self.head = nn.Linear(7, 2)

    def forward(self, vector: Tensor, image: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(vector).tanh(), self.right(image).mean((2, 3))], 1))


class DictModel(nn.Module):
    """Takes a whole batch by name and ignores the labels, as models of Hugging Face may."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(N_TOKENS, 6)
        self.head = nn.Linear(6, N_CLASSES)

    def forward(self, tokens: Tensor, scale: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"scores": self.head(self.embedding(tokens).mean(1).tanh() * scale[:, None])}


def dict_loss(output: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    return functional.cross_entropy(output["scores"], batch["labels"], reduction="none")


def n_tokens(target: Tensor) -> Tensor:
    return (target != PADDING).flatten(1).sum(1)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, N_CLASSES))


def _labels(n: int) -> Tensor:
    return torch.randint(N_CLASSES, (n,))


def _tokens(n: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(N_TOKENS, (n, 5))
    target = tokens.roll(-1, 1)
    lengths = torch.randint(2, 6, (n,))
    return tokens, target.masked_fill(torch.arange(5) >= lengths[:, None], PADDING)


def _dict(n: int) -> dict[str, Tensor]:
    return {"tokens": torch.randint(N_TOKENS, (n, 4)), "scale": torch.rand(n) + 0.5, "labels": _labels(n)}


@dataclass(frozen=True)
class Case:
    """A model, its data and its loss.

    Attributes
    ----------
    make : callable
        Builds the model; call `model(seed)`.
    split : callable
        ``split(n)`` draws n examples; call `data()`.
    options : dict
        Further arguments of Objective.
    kind : str
        How `plain` computes the loss: "labels", "tokens", "mse" or "dict".
    """

    name: str
    make: Callable[[], nn.Module]
    split: Callable[[int], Any]
    options: dict[str, Any] = field(default_factory=dict)
    kind: str = "labels"

    def model(self, seed: int = 0) -> nn.Module:
        return seeded(self.make, seed)

    def data(self, train: int = 9, test: int = 6) -> dict[str, Any]:
        return seeded(lambda: {"train": self.split(train), "test": self.split(test)}, 100)

    def plain(self, model: nn.Module, data: dict[str, Any]) -> dict[tuple[str, str], float]:
        """Measure by a plain loop over single examples, in float64, with torch.nn.functional alone."""
        model = copy.deepcopy(model).double().eval()
        values: dict[tuple[str, str], float] = {}
        for split, part in data.items():
            losses, right, counts = [], [], []
            for place in range(_length(part)):
                with torch.no_grad():
                    loss, hits, count = self._one(model, _example(part, place))
                losses.append(loss)
                right.append(hits)
                counts.append(count)
            values[split, "loss"] = math.fsum(losses) / sum(counts)
            if self.kind in ("labels", "tokens"):
                values[split, "accuracy"] = sum(right) / sum(counts)
        return values

    def _one(self, model: nn.Module, part: Any) -> tuple[float, float, int]:
        """Loss and right answers of one example, summed over its tokens, and their number."""
        if self.kind == "dict":
            return float(functional.cross_entropy(model(**part)["scores"], part["labels"])), 0.0, 1
        inputs, target = part
        output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
        if self.kind == "mse":
            return float(functional.mse_loss(output, target)), 0.0, 1
        if self.kind == "tokens":
            output, target = output[target != PADDING], target[target != PADDING]
        loss = functional.cross_entropy(output, target, reduction="sum")
        return float(loss), float((output.argmax(1) == target).sum()), len(target)


def _length(part: Any) -> int:
    if isinstance(part, Tensor):
        return len(part)
    return _length(next(iter(part.values())) if isinstance(part, dict) else part[0])


def _example(part: Any, place: int) -> Any:
    if isinstance(part, Tensor):
        leaf = part[place : place + 1]
        return leaf.double() if leaf.is_floating_point() else leaf
    if isinstance(part, dict):
        return {name: _example(leaf, place) for name, leaf in part.items()}
    return tuple(_example(leaf, place) for leaf in part)


CASES = [
    Case("mlp", mlp, lambda n: (torch.randn(n, 5), _labels(n))),
    Case("cnn_batchnorm", ConvNet, lambda n: (torch.randn(n, 2, 6, 6), _labels(n))),
    Case("vgg_dropout", Vgg, lambda n: (torch.randn(n, 2, 6, 6), _labels(n))),
    Case("transformer_tied", TinyTransformer, _tokens, {"count": n_tokens}, "tokens"),
    Case("lstm", LstmClassifier, lambda n: (torch.randn(n, 6, 4), _labels(n))),
    Case(
        "two_inputs",
        TwoInputs,
        lambda n: ((torch.randn(n, 4), torch.randn(n, 1, 5, 5)), torch.randn(n, 2)),
        {"loss": "mse"},
        "mse",
    ),
    Case("dict_batch", DictModel, _dict, {"loss": dict_loss}, "dict"),
]
BY_NAME = {case.name: case for case in CASES}
