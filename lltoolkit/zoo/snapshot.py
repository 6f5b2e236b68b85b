"""A copy of a model's state, brought up to date after each step, and handed over to be written."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lltoolkit.tensors.weight_files import place_of
from lltoolkit.zoo.runs import unwrap


def _nothing() -> None:
    """Wait for nothing."""


@dataclass(frozen=True)
class Kept:
    """A state that nobody changes any more, on the CPU.

    Attributes
    ----------
    model : dict of str to Tensor
        Parameters and buffers; tied names share one tensor.
    buffers : list of str
        Which of them are buffers.
    optimizer : dict, optional
        By the parameter's name what the optimizer remembers of it, by the optimizer's own words (``exp_avg``, ...).
    arrived : callable
        Returns when the last number has come from a GPU; to be called before any is read.
    """

    model: dict[str, Tensor]
    buffers: list[str]
    optimizer: dict[str, dict[str, Tensor]] | None = None
    arrived: Callable[[], object] = _nothing


class Snapshot:
    """Hold the state of a model as of the last call of ``take``, on the model's own device.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer, optional
        Whose memory is held too.
    """

    def __init__(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        self._optimizer = optimizer
        self._names: dict[tuple[str, str], int] = {}  # the place of each entry's copy; tied names share one
        self._numbers: list[int] = []  # of the entries that are copied
        self._pointers: list[int] = []
        self._copies: list[Tensor] = []
        self._buffers: list[str] = []
        self._kept: Kept | None = None  # what was handed over since the last `take`

    def take(self, model: nn.Module) -> None:
        """Copy the state of `model`, without waiting for a GPU; where that fails, the last one stays."""
        model = unwrap(model)
        state = self._state(model)
        tensors = list(state.values())
        pointers = [tensor.data_ptr() for tensor in tensors]
        if pointers != self._pointers or list(state) != list(self._names):
            self._find(model, state)
            self._pointers = pointers
        sources = [tensors[number] for number in self._numbers]
        with torch.no_grad():
            if self._copies and len(self._copies) == len(sources) and all(map(_fits, self._copies, sources)):
                torch._foreach_copy_(self._copies, sources)
            else:
                self._copies = [source.clone() for source in sources]
        self._kept = None

    def _find(self, model: nn.Module, state: dict[tuple[str, str], Tensor]) -> None:
        """Find out which entries are one tensor under two names, and which are buffers: the same at most steps."""
        places: dict[tuple[object, ...], int] = {}
        self._names, self._numbers = {}, []
        for number, (name, tensor) in enumerate(state.items()):
            self._names[name] = places.setdefault(place_of("/".join(name), tensor), len(places))
            if self._names[name] == len(self._numbers):
                self._numbers.append(number)
        self._buffers = [name for name, _ in model.named_buffers(remove_duplicate=False) if ("", name) in state]

    def hand_over(self) -> Kept:
        """Give the state away: the next ``take`` does not touch it.

        Returns
        -------
        Kept
            What lies on a GPU is still on its way: ``Kept.arrived`` waits for it.
        """
        if self._kept is None:
            self._kept = self._hand_over()
        return self._kept

    def _hand_over(self) -> Kept:
        copies, names, arrived = self._copies, self._names, _nothing
        if all(copy.device.type == "cpu" for copy in copies):
            self._copies = []
        else:
            gpus = {copy.device for copy in copies if copy.device.type == "cuda"}
            copies = [_to_cpu(copy) for copy in copies]
            arrived = _marks(gpus)
        model: dict[str, Tensor] = {}
        optimizer: dict[str, dict[str, Tensor]] = {}
        for (word, name), place in names.items():
            if word:
                optimizer.setdefault(name, {})[word] = copies[place]
            else:
                model[name] = copies[place]
        return Kept(model, self._buffers, None if self._optimizer is None else optimizer, arrived)

    def _state(self, model: nn.Module) -> dict[tuple[str, str], Tensor]:
        """Return the state by the optimizer's word and the name; the word is empty for the model's own."""
        state = {("", name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
        for (_, name), tensor in state.items():
            if not isinstance(tensor, Tensor):
                raise ValueError(
                    f"the state holds {name!r}, a {type(tensor).__name__}; a checkpoint keeps tensors only."
                )
        if self._optimizer is None:
            return state
        for name, weight in model.named_parameters():
            for word, value in self._optimizer.state.get(weight, {}).items():
                if isinstance(value, Tensor | int | float):
                    state[word, name] = torch.as_tensor(value).detach()
        return state


def _fits(copy: Tensor, source: Tensor) -> bool:
    return copy.shape == source.shape and copy.dtype == source.dtype and copy.device == source.device


def _marks(gpus: Iterable[torch.device]) -> Callable[[], None]:
    """Mark what each GPU was given to do until now; what is returned waits for that."""
    events = [torch.cuda.current_stream(gpu).record_event() for gpu in gpus]

    def wait() -> None:
        for event in events:
            event.synchronize()

    return wait


def _to_cpu(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor.cpu()
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
