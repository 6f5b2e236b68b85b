"""Peak memory of a run: of its parent and of every process beside it, against what may be used. Linux only."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lltoolkit
from benchmarks.cases import Case
from benchmarks.report import machine_line, table

MB = 1e6
PARENT, FURTHER = 500 * MB, 400 * MB  # beside data, weights and activations: the interpreter, torch, xarray, NetCDF
MODELS = 5  # copies of the weights: model, minimizer, two directions, the flat tensor
POLL_SECONDS = 0.02


@dataclass
class Peak:
    """The largest memory of a process so far, in bytes.

    Parameters
    ----------
    resident : int
        The kernel's own high-water mark.
    mapped : int
        Of the pages that are a file's or shared memory's, the most that was seen: the shared data are among them.
    """

    resident: int = 0
    mapped: int = 0


def measure_memory(arguments: Sequence[str], *, n_workers: int) -> dict[str, Any]:
    """Run one surface in a process of its own and watch the memory of all its processes.

    Parameters
    ----------
    arguments : sequence of str
        Of ``python -m benchmarks one-surface``.
    n_workers : int
        How many of them compute, for the record.

    Returns
    -------
    dict
        JSON-able: what the run said of its sizes, the peak of each process, and the bars.

    Raises
    ------
    OSError
        If this system has no ``/proc``.
    RuntimeError
        If the run fails; its own words are in the message.
    """
    if not Path("/proc/self/status").exists():
        raise OSError("memory is read from /proc, which this system lacks. Run it on Linux.")
    command = [sys.executable, "-m", "benchmarks", "one-surface", *arguments]
    peaks: dict[int, Peak] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        # It says little, well below what a pipe holds, so that nobody need read while it runs.
        while child.poll() is None:
            for pid in _family(child.pid):
                _note(peaks.setdefault(pid, Peak()), pid)
            time.sleep(POLL_SECONDS)
        said, complaint = child.communicate()
    if child.returncode:
        raise RuntimeError(f"the run ended with status {child.returncode}:\n{complaint.strip()}")
    sizes = json.loads(said.splitlines()[-1])
    needed = sizes["data"] + MODELS * sizes["model"] + sizes["activations"]
    parent = peaks.pop(child.pid)
    processes = [{"process": "parent", "peak": parent.resident, "bar": needed + PARENT, "found": parent.resident}]
    for peak in sorted(peaks.values(), key=lambda one: -one.resident):
        own = peak.resident - min(sizes["data"], peak.mapped)  # the data are counted once, with the parent
        processes.append({"process": "further", "peak": peak.resident, "bar": FURTHER, "found": own})
    for process in processes:
        process["met"] = process["found"] <= process["bar"]
    return {**sizes, "n_workers": n_workers, "processes": processes}


def _family(pid: int) -> list[int]:
    """Give a process and its descendants."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[int(status.parent.name)] = int(after_name[1])
    family, grown = {pid}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in family} - family
        family |= more
        grown = bool(more)
    return sorted(family)


def _note(peak: Peak, pid: int) -> None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return
    fields = {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}
    if "VmHWM" in fields:  # a process that has ended and was not waited for has none
        peak.resident = max(peak.resident, int(fields["VmHWM"][0]) * 1024)
        mapped = int(fields["RssFile"][0]) + int(fields["RssShmem"][0])
        peak.mapped = max(peak.mapped, mapped * 1024)


def compute_one(
    case: Case, *, resolution: int, n_workers: int, examples: str, tolerance: float | None
) -> dict[str, Any]:
    """Compute a surface, and say how large its parts are in bytes."""
    objective = lltoolkit.Objective(case.model, {"train": (case.x, case.y)}, device="cpu")
    plane = lltoolkit.random_subspace(objective, seed=0)
    lltoolkit.compute_surface(
        objective,
        plane,
        resolution=resolution,
        examples=examples,
        tolerance=tolerance,
        n_workers=n_workers,
        progress=False,
    )
    tensors = [*case.model.parameters(), *case.model.buffers()]
    return {
        "label": case.label,
        "n_examples": case.n_examples,
        "batch_size": objective.batch_size,
        "data": _size(case.x) + _size(case.y),
        "model": sum(map(_size, tensors)),
        "activations": activations(case.model, case.x[:1]) * min(objective.batch_size, case.n_examples),
    }


def activations(model: nn.Module, x: Tensor) -> int:
    """Give the bytes of all layers' outputs together for the examples `x`."""
    total = 0

    def add(_: nn.Module, __: object, output: Tensor) -> None:
        nonlocal total
        total += _size(output)

    layers = [module for module in model.modules() if not list(module.children())]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return total


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def memory_report(content: Mapping[str, Any]) -> str:
    """Draw the table of a memory run as Markdown."""
    result = content["memory"]
    rows = [
        [
            one["process"],
            f"{one['peak'] / MB:.0f} MB",
            f"{one['found'] / MB:.0f} MB",
            f"{one['bar'] / MB:.0f} MB",
            "met" if one["met"] else "**missed**",
        ]
        for one in result["processes"]
    ]
    about = (
        f"{result['n_examples']} examples ({result['data'] / MB:.1f} MB), weights {result['model'] / MB:.1f} MB, "
        f"activations of a batch of {result['batch_size']} {result['activations'] / MB:.1f} MB; "
        f"{result['n_workers']} computing processes"
    )
    head = ["process", "peak resident", "without shared data", "at most", ""]
    return (
        "\n\n".join(
            [f"### {result['label']}: memory", f"{about}.", table(head, rows), machine_line(content["machine"])]
        )
        + "\n"
    )
