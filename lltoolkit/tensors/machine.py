"""How a measurement uses the machine: device, batches, threads, arithmetic. Nothing outlives its block."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

# A batch with less work than this runs on one thread. On 8x8 images (3 GFLOP a batch of 300) a second thread gains
# little, and where another program has that core the two wait for each other at every layer: measured 20 times slower.
# A batch of 64 CIFAR images through ResNet-20 is 5 GFLOP, and gains 1.5x from the second core.
FLOPS_FOR_THREADS = 4e9
# A batch is as large as lets its largest activation fill this: 32 images of 3x32x32 in ResNet-20 (the next layer finds
# it in the cache), 512 of 8x8 in a small network (fewer, and the calls cost more than the arithmetic).
# Measured by `python -m benchmarks engines`.
ACTIVATION_BYTES = {"cpu": 2 * 2**20, "cuda": 64 * 2**20}
LARGEST_BATCH = 4096
PRECISIONS = ("exact", "tf32", "bf16")

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


def default_batch_size(largest_activation: int, largest_output: int, device: torch.device) -> int:
    """Choose the examples per forward pass from sizes alone, never from a clock: a resume must choose the same.

    Parameters
    ----------
    largest_activation : int
        Bytes of the largest tensor that one example makes on its way through the network.
    largest_output : int
        Numbers in the model's answer to one example.
    device : torch.device
        A GPU takes sixteen times as many.

    Returns
    -------
    int
        About 32 images of 3x32x32 in ResNet-20 on a CPU (activations stay in the cache), at most 4,096, at least 16
        unless the answers alone (a language model's logits, in float64) would fill 256 MB.
    """
    room = ACTIVATION_BYTES.get(device.type, ACTIVATION_BYTES["cuda"])
    by_activation = max(16, min(LARGEST_BATCH, room // largest_activation))
    by_output = max(1, (1 if device.type == "cpu" else 16) * 2**25 // largest_output)
    return min(by_activation, by_output)


class _LargestTensor(TorchDispatchMode):
    """Watch the tensors that operators make and remember the bytes of the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.n_bytes = 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            # A view makes nothing; an expanded one would count memory that nobody holds.
            if isinstance(leaf, Tensor) and not func.is_view:
                self.n_bytes = max(self.n_bytes, leaf.numel() * leaf.element_size())
        return made


def largest_activation(forward: Callable[[], object]) -> int:
    """Find the bytes of the largest tensor that a forward pass makes, at least 1."""
    with torch.no_grad(), _LargestTensor() as watch:
        forward()
    return watch.n_bytes


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


def available_memory(device: torch.device) -> int:
    """Tell how many bytes are free, for what is kept only where there is room.

    Returns
    -------
    int
        Of a GPU: free there, and held by torch without use. Of a CPU: what Linux counts as available, within the limit
        of the control group (a container, a job of a cluster); half of the memory elsewhere.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2]
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = [int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024]
    with suppress(OSError, ValueError):  # no such limit: "max"
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        found.append(max(0, limit - int((group / "memory.current").read_text())))
    return min(found)


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
def arithmetic(device: torch.device, precision: str = "exact") -> Iterator[None]:
    """Compute in a given precision for a while, whatever the caller has switched on.

    Parameters
    ----------
    device : torch.device
        Where it is computed.
    precision : {"exact", "tf32", "bf16"}
        "exact": float32 as IEEE has it, without TF32, bfloat16, autocast and autotuning, which change results by up to
        1e-3. "tf32": matrix products and convolutions of a GPU with 10-bit fractions. "bf16": autocast to bfloat16.

    Yields
    ------
    None
        While it holds.
    """
    backends: Any = torch.backends
    # Reading or setting the old switches raises in newer torch where the user has set the new ones, or "medium".
    places: list[Any] = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn] if _HAS_FP32_PRECISION else []
    n_cuda = len(places)
    places += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn] if _HAS_FP32_PRECISION else []
    before = [place.fp32_precision for place in places]
    old = None if _HAS_FP32_PRECISION else (torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32)
    tuning = backends.cudnn.benchmark, backends.cudnn.deterministic
    mkldnn = backends.mkldnn.enabled  # a worker process would not know that its parent has switched it off
    tf32 = precision == "tf32"
    try:
        for place in places[:n_cuda]:
            place.fp32_precision = "tf32" if tf32 else "ieee"
        for place in places[n_cuda:]:
            place.fp32_precision = "ieee"  # a CPU has no TF32
        if old is not None:
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
            backends.cudnn.allow_tf32 = tf32
        backends.cudnn.benchmark, backends.cudnn.deterministic = False, True
        backends.mkldnn.enabled = True
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        backends.cudnn.benchmark, backends.cudnn.deterministic = tuning
        backends.mkldnn.enabled = mkldnn
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
        if old is not None:
            torch.set_float32_matmul_precision(old[0])
            backends.cudnn.allow_tf32 = old[1]


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
