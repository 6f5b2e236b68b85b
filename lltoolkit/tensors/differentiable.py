"""What stands between a model and its second derivatives: kernels chosen so that there are some, and who has none."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lltoolkit.tensors.machine import is_out_of_memory, without_cudnn

# Operators by the names of their backward, in lower case.
KINKED = re.compile(
    r"relu|threshold|leakyrelu|hardtanh|prelu|rrelu|hardswish|hardsigmoid|elu|where|abs|clamp(min|max)?|max|min|maximum|"
    r"minimum|amax|amin|aminmax|topk|sort|median|(mkldnn|adaptive)?maxpool[123]d|l1loss|smoothl1loss|huberloss"
)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Choose kernels that can be differentiated twice, for a while: fused attention and cuDNN's recurrent layers can't.

    Yields
    ------
    None
        While it holds.
    """
    with ExitStack() as stack:
        stack.enter_context(without_cudnn())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        # nn.MultiheadAttention and nn.TransformerEncoder have a fused path of their own in eval mode.
        before = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, before)
        torch.backends.mha.set_fastpath_enabled(False)
        yield


def require_second_derivatives(tensors: Sequence[Tensor | None], model: str) -> None:
    """Look for functions that can be differentiated once only: torch would pass them by, and be wrong in silence.

    Parameters
    ----------
    tensors : sequence of Tensor or None
        A loss and its gradients, with their graphs.
    model : str
        Its name, for the error.

    Raises
    ------
    ValueError
        Naming the functions.
    """
    nodes = list(_nodes(tensors))
    if any(node.name() in ("torch::autograd::Error", "NotImplemented") for node in nodes):
        own = {type(node).__name__ for node in nodes if isinstance(node, torch.autograd.function.BackwardCFunction)}
        names = ", ".join(sorted(name.removesuffix("Backward") for name in own))
        raise ValueError(_no_derivative(model, "second", names or "an operator with once_differentiable"))


def kinks_of(loss: Tensor) -> list[str]:
    """Name the operators of a loss's graph that have kinks, where there is no second derivative: ReLU, max-pooling."""
    names = {re.split(r"Backward|WithIndices", node.name())[0] for node in _nodes([loss])}
    return sorted(name for name in names if KINKED.fullmatch(name.lower()))


def _nodes(tensors: Sequence[Tensor | None]) -> Iterator[Any]:
    """Walk a graph, each node once."""
    todo = [tensor.grad_fn for tensor in tensors if tensor is not None]
    seen = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        todo += [following for following, _ in node.next_functions]


def explained(error: RuntimeError, model: str, order: str) -> BaseException:
    """Say which operator stands in the way, where that is what went wrong.

    Parameters
    ----------
    error : RuntimeError
        Of torch.autograd.
    model : str
        Its name.
    order : {"first", "second"}
        Which derivative was asked for.

    Returns
    -------
    BaseException
        To be raised: a ValueError that names the operator, or `error` itself.
    """
    if is_out_of_memory(error):
        return error
    text = str(error)
    if found := re.search(r"derivative for '?([\w:.]+)'? is not implemented", text):
        return ValueError(_no_derivative(model, order, found.group(1)))
    if "checkpoint" in text.lower():
        return ValueError(_no_derivative(model, order, "torch.utils.checkpoint with use_reentrant=True"))
    if "sparse" in text.lower():
        return ValueError(_no_derivative(model, order, "a sparse gradient, of Embedding(sparse=True) for example"))
    return error


def _no_derivative(model: str, order: str, operators: str) -> str:
    return (
        f"{model} has no {order} derivative everywhere: {operators}. The Hessian needs operators that can be "
        "differentiated twice: write this one in plain torch operations, or leave the parameters before it out "
        "(parameters=...)."
    )
