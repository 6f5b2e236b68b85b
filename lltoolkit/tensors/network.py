"""Network: a private copy of the user's model whose weights live in one flat buffer."""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lltoolkit.tensors.examples import Examples, Inputs
from lltoolkit.tensors.params import ParameterFilter, Params, buffers_of, parameters_of, select, weights_of

log = logging.getLogger(__name__)

_DEVICE: ContextVar[torch.device | None] = ContextVar("device of unpickled networks", default=None)


class Network:
    """A copy of a model, in eval mode, whose chosen weights are views of one flat tensor.

    Parameters
    ----------
    model : nn.Module
        It is copied and never touched again.
    parameters : str, callable or None
        Which parameters are weights to be moved; see `Objective`.
    device : torch.device
        Where the copy lives.
    dtype : torch.dtype
        Of its floating-point parameters and buffers.

    Attributes
    ----------
    theta, buffers : Params
        The minimizer, as CPU copies.
    flat : Tensor
        Shape ``(n_weights,)``, on `device`: the weights as they now stand.
    views : dict
        First name of each moved weight to the model's parameters that hold it: views of `flat`, several where tied.
    n_params : int
        Number of floating-point parameters of the whole model, each tied weight once.
    was_half : bool
        Whether some parameters came with fewer than 32 bits.
    """

    def __init__(self, model: nn.Module, parameters: ParameterFilter, device: torch.device, dtype: torch.dtype) -> None:
        chosen = choose_parameters(model, parameters)
        self.theta = {name: tensor.to(dtype) for name, tensor in parameters_of(model, chosen).items()}
        self.buffers = {name: tensor.to(dtype) for name, tensor in buffers_of(model).items()}
        self.n_params = sum(group[0].numel() for group in weights_of(model).values())
        self.was_half = any(p.is_floating_point() and p.itemsize < 4 for p in model.parameters())
        self.device = device
        self.model = _copy(model).to(device=device, dtype=dtype).eval().requires_grad_(False)
        groups = _twins(model, self.model)
        self.flat = torch.cat([groups[name][0].detach().flatten() for name in chosen])
        self.views: dict[str, list[nn.Parameter]] = {}
        start = 0
        for name in chosen:
            stop = start + groups[name][0].numel()
            for parameter in groups[name]:
                parameter.data = self.flat[start:stop].view(parameter.shape)
            self.views[name] = groups[name]
            start = stop
        self._find_parts()
        if any(isinstance(module, _BatchNorm) and not module.track_running_stats for module in self.model.modules()):
            log.warning(
                "the model has batch norm without running statistics: it normalizes each batch by itself, so values "
                "depend on batch_size"
            )

    def _find_parts(self) -> None:
        """Find again what is written and asked for at every cell: the model's own buffers and batch norms."""
        self._live_buffers = {name: t for name, t in self.model.named_buffers() if t.is_floating_point()}
        self.batch_norms = [
            module for module in self.model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
        ]

    def __getstate__(self) -> dict[str, Any]:
        # Pickle would write the whole flat tensor once for every view of it, and part the views from it for good: the
        # model is written with empty parameters in their place. On the CPU, so that `loading_on` can choose the device.
        memo: dict[int, Any] = {}
        for group in self.views.values():
            for parameter in group:
                empty = nn.Parameter(self.flat.new_empty(0, device="cpu"), requires_grad=False)
                empty.__dict__.update(parameter.__dict__)
                memo[id(parameter)] = empty
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        views = {
            first: (tuple(group[0].shape), [names[id(parameter)] for parameter in group])
            for first, group in self.views.items()
        }
        model = copy.deepcopy(self.model, memo).to("cpu")
        replaced = {"model": model, "flat": self.flat.cpu(), "views": views}
        return {
            name: replaced.get(name, value)
            for name, value in self.__dict__.items()
            if name not in ("_live_buffers", "batch_norms")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.device = device_to_load_on(state["device"])
        self.model = state["model"].to(self.device)
        self.flat = state["flat"].to(self.device)
        parameters = dict(self.model.named_parameters())
        self.views = {}
        start = 0
        for first, (shape, names) in state["views"].items():
            stop = start + math.prod(shape)
            self.views[first] = [parameters[name] for name in names]
            for parameter in self.views[first]:
                parameter.data = self.flat[start:stop].view(shape)
            start = stop
        self._find_parts()

    def flatten(self, vector: Params) -> Tensor:
        """Lay out a vector as `flat` is: shape ``(n_weights,)``, on the network's device."""
        return torch.cat([vector[name].to(self.flat).flatten() for name in self.views])

    def write_buffers(self, moved: Params) -> None:
        """Set the buffers: those in `moved`, the minimizer's for all others."""
        for name, buffer in self._live_buffers.items():
            buffer.copy_(moved.get(name, self.buffers[name]))

    def __call__(self, inputs: Inputs) -> Any:
        """Run the model on a batch."""
        if isinstance(inputs, Tensor):
            return self.model(inputs)
        return self.model(**inputs) if isinstance(inputs, dict) else self.model(*inputs)

    def recompute_buffers(self, examples: Examples, batch_size: int) -> None:
        """Estimate the batch-norm statistics anew: the mean over batches, weighted by their sizes."""
        momenta = [module.momentum for module in self.batch_norms]
        seen = 0
        try:
            for module in self.batch_norms:
                module.reset_running_stats()
                module.train()  # of all modules only these: dropout stays off
            # Two examples at least: batch norm on vectors has no variance of one, so no batch of one may be left.
            for batch in examples.batches(max(2, batch_size), smallest=2):
                seen += batch.size
                for module in self.batch_norms:
                    module.momentum = batch.size / seen
                self(batch.inputs)
        finally:
            for module, momentum in zip(self.batch_norms, momenta, strict=True):
                module.momentum = momentum
                module.eval()

    @contextmanager
    def gradients(self, names: Iterable[str] | None = None) -> Iterator[Callable[[], Tensor]]:
        """Let gradients reach the weights.

        Parameters
        ----------
        names : iterable of str, optional
            Which of them; all by default.

        Yields
        ------
        callable
            Gives the gradient gathered so far, shape ``(n_weights,)`` in float64; zero where nothing reached.
        """

        def gathered() -> Tensor:
            parts = []
            for group in self.views.values():
                grads = [parameter.grad.double() for parameter in group if parameter.grad is not None]
                none = torch.zeros_like(group[0], dtype=torch.float64)
                parts.append(torch.stack([none, *grads]).sum(dim=0).flatten())
            return torch.cat(parts)

        leaves = [parameter for name in names or self.views for parameter in self.views[name]]
        try:
            for leaf in leaves:
                leaf.requires_grad_(True)
            with torch.enable_grad():
                yield gathered
        finally:
            for leaf in leaves:
                leaf.requires_grad_(False)
                leaf.grad = None
            for module in self.model.modules():  # an activation that the model keeps would hold the whole graph
                for name, value in list(vars(module).items()):
                    if (released := _released(value)) is not value:
                        setattr(module, name, released)


def _released(value: Any) -> Any:
    """Detach the tensors in a value that a module keeps; the very same object where there is nothing to detach."""
    if isinstance(value, Tensor):
        return value if value.grad_fn is None else value.detach()
    if type(value) in (list, tuple):
        parts = [_released(part) for part in value]
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else type(value)(parts)
    if type(value) is dict:
        found = {key: _released(part) for key, part in value.items()}
        return value if all(found[key] is value[key] for key in value) else found
    return value


@contextmanager
def loading_on(device: torch.device | str | None) -> Iterator[None]:
    """Let networks that are unpickled meanwhile live on `device`, instead of the one that they were pickled on."""
    token = _DEVICE.set(None if device is None else torch.device(device))
    try:
        yield
    finally:
        _DEVICE.reset(token)


def device_to_load_on(pickled: torch.device) -> torch.device:
    """Give the device for what was on `pickled`: that one, unless `loading_on` says another."""
    return _DEVICE.get() or pickled


def _twins(model: nn.Module, copied: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Group the copy's parameters as the model's: deepcopy unties two parameters that share one storage."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    twins = dict(copied.named_parameters())
    return {first: [twins[names[id(parameter)]] for parameter in group] for first, group in weights_of(model).items()}


def choose_parameters(model: nn.Module, parameters: ParameterFilter) -> list[str]:
    """Name the parameters that a filter selects, in the model's order.

    Parameters
    ----------
    model : nn.Module
        The model.
    parameters : str, callable or None
        A regular expression searched in the name, ``f(name, parameter) -> bool``, or None for all.

    Returns
    -------
    list of str
        At least one name.

    Raises
    ------
    ValueError
        If nothing is selected, or the regular expression is none.
    """
    weights = {name: group[0] for name, group in weights_of(model).items()}
    if not weights:
        raise ValueError(f"{type(model).__name__} has no floating-point parameters, so it has no loss landscape.")
    return select(weights, parameters)


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ValueError(
            f"the model ({type(model).__name__}) can't be copied by copy.deepcopy: {error}. Tensors that were computed "
            "with gradients and kept as attributes are the usual cause: detach them."
        ) from error
