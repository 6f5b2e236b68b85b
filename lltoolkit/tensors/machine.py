"""How a measurement uses the machine: device, batches, threads, arithmetic. Nothing outlives its block."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

# A batch with less work than this runs on one thread. On 8x8 images (3 GFLOP a batch of 300) a second thread gains
# little, and where another program has that core the two wait for each other at every layer: measured 20 times slower.
# A batch of 64 CIFAR images through ResNet-20 is 5 GFLOP, and gains 1.5x from the second core.
FLOPS_FOR_THREADS = 4e9

_HAS_FP32_PRECISION = hasattr(torch.backends.cuda.matmul, "fp32_precision")  # torch 2.9

log = logging.getLogger(__name__)


def resolve_device(device: str | torch.device) -> torch.device:
    """Turn ``"auto"`` or a name into a device that is there.

    Returns
    -------
    torch.device
        For "auto": the GPU where there is one.

    Raises
    ------
    ValueError
        If the name is none, or there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(1, dtype=torch.float64, device=resolved)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        if reason.startswith("Expected one of"):  # torch lists some twenty kinds, most of which nobody has
            reason = "there is no such kind of device; a GPU is 'cuda' or 'cuda:1'"
        raise ValueError(f"device={str(device)!r} can't be used: {reason}. Use 'auto' or 'cpu'.") from error
    return resolved


def default_batch_size(largest_input: int, largest_output: int, device: torch.device) -> int:
    """Choose the examples per forward pass from sizes alone, never from a clock: a resume must choose the same.

    Parameters
    ----------
    largest_input, largest_output : int
        Numbers in one example's input and in the model's answer to it.
    device : torch.device
        A GPU takes sixteen times as many.

    Returns
    -------
    int
        About 64 images of 3x32x32 on a CPU (activations stay in the cache), at most 512, at least 16 unless
        the answers alone (a language model's logits, in float64) would fill 256 MB.
    """
    scale = 16 if device.type == "cuda" else 1
    by_input = max(16, min(512, 64 * 3 * 32 * 32 // largest_input))
    by_output = max(1, 2**25 // largest_output)
    return scale * min(by_input, by_output)


def count_flops(forward: Callable[[], object]) -> float:
    """Count the floating-point operations of a forward pass from its operators and shapes.

    Returns
    -------
    float
        Two for each multiply-add of convolutions, matrix products and attention; infinite where they can't be
        counted.
    """
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            forward()
        return float(counter.get_total_flops())
    except Exception as error:  # whatever a model does that the counter has not met: it is a hint, not a result
        log.info("operations can't be counted: %s", error)
        return float("inf")


def default_threads(flops_of_a_batch: float) -> int:
    """Choose the number of threads from the work of a batch, never from a clock: a resume must choose the same.

    Returns
    -------
    int
        1 for small batches, else what torch is set to.
    """
    return 1 if flops_of_a_batch < FLOPS_FOR_THREADS else torch.get_num_threads()


@contextmanager
def using_threads(n_threads: int) -> Iterator[None]:
    """Compute with so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Switch cuDNN off for a while: it has no gradient of recurrent layers in eval mode."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Switch TF32, bfloat16, autocast and autotuning off for a while: they change float32 results by up to 1e-3."""
    backends: Any = torch.backends
    # Reading or setting the old switches raises in newer torch where the user has set the new ones, or "medium".
    places: list[Any] = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn] if _HAS_FP32_PRECISION else []
    places += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn] if _HAS_FP32_PRECISION else []
    before = [place.fp32_precision for place in places]
    old = None if _HAS_FP32_PRECISION else (torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32)
    tuning = backends.cudnn.benchmark, backends.cudnn.deterministic
    try:
        for place in places:
            place.fp32_precision = "ieee"
        if old is not None:
            torch.set_float32_matmul_precision("highest")
            backends.cudnn.allow_tf32 = False
        backends.cudnn.benchmark, backends.cudnn.deterministic = False, True
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        backends.cudnn.benchmark, backends.cudnn.deterministic = tuning
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
        if old is not None:
            torch.set_float32_matmul_precision(old[0])
            backends.cudnn.allow_tf32 = old[1]
