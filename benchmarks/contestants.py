"""One small class for each tool: its own API asked for a k x k grid of the loss, timed and checked the same way.

A tool is imported by the class that needs it. Where the tool's API takes directions, it is given lltoolkit's; where its
definition of the loss or of the grid differs, its note says so.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lltoolkit
from benchmarks.cases import LOADER_BATCH, Case
from benchmarks.meter import Checked, Instant, Meter, Turn
from lltoolkit.errors import require_choice
from lltoolkit.tensors.engines import make_engine


class Missing(Exception):  # noqa: N818 - not an error: a tool that is not there is left out and told
    """A tool that can't be imported, with the reason."""


class Contestant(ABC):
    """A tool that computes a grid of the loss around a case's weights.

    Parameters
    ----------
    case : Case
        What it is asked for.
    plane : lltoolkit.Subspace
        The directions it is given, where it takes any.

    Attributes
    ----------
    name, distribution, module : str
        As the table, the registry and Python call it.
    gives, note : str
        What it returns for a cell; where it differs from the loss over all examples.
    """

    name: ClassVar[str]
    distribution: ClassVar[str] = ""
    module: ClassVar[str] = ""
    gives: ClassVar[str] = "loss"
    note: ClassVar[str] = ""

    def __init__(self, case: Case, plane: lltoolkit.Subspace) -> None:
        self.case = case
        self.plane = plane
        if self.module:
            self.tool = _import(self.module, self.distribution)

    @property
    def version(self) -> str:
        """The tool's version, or nothing."""
        return importlib.metadata.version(self.distribution) if self.distribution else ""

    @abstractmethod
    def turn(self, k: int, *, check: bool = False) -> Turn:
        """Compute a k x k grid once, from the tool's set-up on."""


class Toolkit(Contestant):
    """lltoolkit itself."""

    name = "lltoolkit"
    distribution = "lltoolkit"
    gives = "loss, accuracy"
    note = "set-up once per plane, all else in the time"

    def __init__(self, case: Case, plane: lltoolkit.Subspace) -> None:
        super().__init__(case, plane)
        self.objective = lltoolkit.Objective(case.model, {"train": (case.x, case.y)}, device="cpu")
        self.engine = "?"

    def turn(self, k: int, *, check: bool = False) -> Turn:
        """Measure the points of a k x k grid on [-1, 1]^2."""
        points = [(a, b) for a in np.linspace(-1, 1, k).tolist() for b in np.linspace(-1, 1, k).tolist()]
        before = Instant()
        engine = make_engine(self.objective, self.plane, engine="auto")
        start = Instant()
        values = engine.measure_points(points)
        end = Instant()
        self.engine = engine.name
        checked = []
        if check:
            losses = [value["train", "loss"] for value in values]
            checked = [Checked(loss, self._weights(*point)) for loss, point in zip(losses, points, strict=True)]
        n = len(points)
        wall, cpu = (end.wall - start.wall) / n, (end.cpu - start.cpu) / n
        return Turn(n, wall, cpu, start.wall - before.wall, checked)

    def _weights(self, alpha: float, beta: float) -> dict[str, Tensor]:
        """Give the weights of a point in float64: not those that the engine made, but those it was asked for."""
        first, second = self.plane.directions
        return {
            name: origin.double() + alpha * first[name].double() + beta * second[name].double()
            for name, origin in self.plane.origin.items()
        }


class Metered(Contestant):
    """A tool that calls a loss function of ours, which tells one cell from the next."""

    full_batch: ClassVar[bool] = False

    def turn(self, k: int, *, check: bool = False) -> Turn:
        """Run the tool's own function once."""
        model = self.case.copy_model()
        meter = Meter(1 if self.full_batch else len(self._loader()), model if check else None)
        with _silence():
            started = Instant()
            grid = self._grid(model, meter, k)
            ended = Instant()
        return meter.read([float(grid[cell]) for cell in self._order(k)], started, ended)

    @abstractmethod
    def _grid(self, model: nn.Module, meter: Meter, k: int) -> np.ndarray:
        """Compute the grid by the tool's own API."""

    def _order(self, k: int) -> list[tuple[int, int]]:
        """Give the indices of the returned grid in the order in which the tool computes them."""
        return [(i, j) for i in range(k) for j in range(k)]

    def _loader(self) -> DataLoader:
        return DataLoader(TensorDataset(self.case.x, self.case.y), batch_size=LOADER_BATCH)

    def _directions(self) -> list[list[Tensor]]:
        return [[direction[name].clone() for name in self._names()] for direction in self.plane.directions]

    def _names(self) -> list[str]:
        return [name for name, _ in self.case.model.named_parameters()]


class Loop(Metered):
    """What one writes by hand: weights set, a DataLoader read, losses weighted by batch size."""

    name = "DataLoader loop"

    def _grid(self, model: nn.Module, meter: Meter, k: int) -> np.ndarray:
        loader = self._loader()
        parameters = list(model.parameters())
        origin = [parameter.detach().clone() for parameter in parameters]
        first, second = self._directions()
        grid = np.zeros((k, k))
        with torch.no_grad():
            for i, alpha in enumerate(np.linspace(-1, 1, k)):
                for j, beta in enumerate(np.linspace(-1, 1, k)):
                    for parameter, w, a, b in zip(parameters, origin, first, second, strict=True):
                        parameter.copy_(w + alpha * a + beta * b)
                    total = 0.0
                    for x, y in loader:
                        total += meter(model(x), y).item() * len(x)
                    grid[i, j] = total / self.case.n_examples
        return grid


class LossLandscapes(Metered):
    """loss-landscapes: `random_plane` with its own `Loss` metric."""

    name = "loss-landscapes"
    distribution = "loss-landscapes"
    module = "loss_landscapes"
    full_batch = True
    note = "all examples in one batch; its own directions; steps accumulate, odd rows are shifted by one step"

    def _grid(self, model: nn.Module, meter: Meter, k: int) -> np.ndarray:
        metrics = importlib.import_module("loss_landscapes.metrics")
        loss = metrics.Loss(meter, self.case.x, self.case.y)
        return self.tool.random_plane(model, loss, distance=1, steps=k, normalization="filter")

    def _order(self, k: int) -> list[tuple[int, int]]:
        """Give the order of its walk: there and back."""
        return [(i, j if i % 2 == 0 else k - 1 - j) for i in range(k) for j in range(k)]


class Landscaper(Metered):
    """landscaper: `LossLandscape.compute` with a scalar function of ours."""

    name = "landscaper"
    distribution = "landscaper"
    module = "landscaper"
    full_batch = True
    note = "all examples in one batch (the scalar function is the user's); adds random noise to the largest value"

    def _grid(self, model: nn.Module, meter: Meter, k: int) -> np.ndarray:
        def mean_loss(moved: nn.Module, data: tuple[Tensor, Tensor]) -> float:
            x, y = data
            return meter(moved(x), y).item()

        data = (self.case.x, self.case.y)
        landscape = self.tool.LossLandscape.compute(
            model, data, self._directions(), mean_loss, steps=k, distance=1.0, dim=2, device="cpu"
        )
        return landscape.loss


class Losscape(Metered):
    """losscape: `create_3D_losscape`, all batches."""

    name = "losscape"
    distribution = "losscape"
    module = "losscape.create_landscape"
    note = "mean of batch means, so a short last batch counts too much; no eval mode of its own (given a model in it)"

    def _grid(self, model: nn.Module, meter: Meter, k: int) -> np.ndarray:
        loader = self._loader()
        with tempfile.TemporaryDirectory() as folder:  # it draws, whether one asks for it or not
            _, _, losses = self.tool.create_3D_losscape(
                model,
                train_loader_unshuffled=loader,
                directions=self._directions(),
                criterion=meter,
                num_batches=len(loader),
                save_only=True,
                output_path=folder,
                output_h5=False,
                num_points=k,
            )
        return losses


class LossLandscape3D(Metered):
    """loss-landscape-3d: `LossLandscapeCalculator.calculate`."""

    name = "loss-landscape-3d"
    distribution = "loss-landscape-3d"
    module = "loss_landscape_3d"
    note = "given lltoolkit's directions: its own move batch norm's variances, to NaN"

    def _grid(self, model: nn.Module, meter: Meter, k: int) -> np.ndarray:
        calculator = self.tool.LossLandscapeCalculator(model, self._loader(), meter)
        center = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        first, second = self.plane.directions
        ends = np.linspace(-1, 1, k)
        return calculator.calculate(ends, ends, first, second, center)


CONTESTANTS: tuple[type[Contestant], ...] = (
    Toolkit,
    LossLandscapes,
    Landscaper,
    Losscape,
    LossLandscape3D,
    Loop,
)
PEERS = tuple(kind.name for kind in CONTESTANTS if kind not in (Toolkit, Loop))


def _import(module: str, distribution: str) -> Any:
    """Import a tool; it may print or warn.

    Returns
    -------
    module
        The tool's.

    Raises
    ------
    Missing
        If it is not there, or does not import beside the other packages.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise Missing(f"{distribution} is not installed; make bench installs it")
    try:
        with _silence():
            return importlib.import_module(module)
    except Exception as error:  # whatever a foreign package does on import: the others are measured all the same
        raise Missing(f"{distribution} does not import: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the tools' prints, progress bars and warnings off the terminal."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def recruit(case: Case, plane: lltoolkit.Subspace, names: Sequence[str] | None = None) -> tuple[list, dict[str, str]]:
    """Make the contestants for a case.

    Parameters
    ----------
    case : Case
        What they are asked for.
    plane : lltoolkit.Subspace
        The directions for those that take any.
    names : sequence of str, optional
        Only these.

    Returns
    -------
    contestants : list of Contestant
        Those that are there, in the order of `CONTESTANTS`.
    missing : dict of str to str
        Why the others are not.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    for name in names or ():
        require_choice("contestant", name, [kind.name for kind in CONTESTANTS])
    ready: list[Contestant] = []
    missing: dict[str, str] = {}
    for kind in CONTESTANTS:
        if names is None or kind.name in names:
            try:
                ready.append(kind(case, plane))
            except Missing as reason:
                missing[kind.name] = str(reason)
    return ready, missing
