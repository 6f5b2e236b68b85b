"""What recording costs a training: the same steps with a Recorder and without one, in turns."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn import functional

from benchmarks.report import machine_line, table
from lltoolkit.zoo import Recorder, build_model, load_data

BATCH = 128
BAR_OVERHEAD = 0.05  # of the time of training, for each way to record that is measured
WAYS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "every='epoch'": {"every": "epoch"},
    "every='geometric'": {"every": "geometric"},
}


class Training:
    """One of the trainings that take turns, an epoch each.

    Attributes
    ----------
    epochs : list of float
        Seconds of each epoch.
    ends : float
        Seconds of opening and closing the recording; closing waits for the disk.
    in_calls, own_cpu, cpu : float
        Seconds in the Recorder's calls; processor seconds of these and of its thread; of everything.
    """

    def __init__(self, folder: Path, options: dict[str, Any] | None) -> None:
        self.model = build_model("resnet20", in_channels=1, input_size=8)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        self.recorder = None if options is None else Recorder(folder, **options)
        self.epochs: list[float] = []
        self.ends = self.in_calls = self.own_cpu = self.cpu = 0.0
        if self.recorder is not None:
            self.ends += self._count(self.recorder.start, self.model)

    def epoch(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Train for an epoch; `step` is called at every step."""
        wall, cpu, of_thread = time.perf_counter(), time.process_time(), time.thread_time()
        for inputs, target in zip(x.split(BATCH), y.split(BATCH), strict=True):
            loss = functional.cross_entropy(self.model(inputs), target)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if self.recorder is not None:
                told = {"epoch": len(self.epochs), "learning_rate": 0.1, "loss": loss}
                self.in_calls += self._count(self.recorder.step, self.model, **told)
        self.epochs.append(time.perf_counter() - wall)
        cpu, of_thread = time.process_time() - cpu, time.thread_time() - of_thread
        self.cpu += cpu
        # On one thread of torch, what this thread did not do is the Recorder's own.
        self.own_cpu += max(cpu - of_thread, 0.0) if self.recorder is not None else 0.0

    def close(self) -> None:
        """End the recording."""
        if self.recorder is not None:
            self.ends += self._count(self.recorder.close)

    def _count(self, call: Callable[..., object], *given: object, **named: object) -> float:
        wall, cpu = time.perf_counter(), time.thread_time()
        call(*given, **named)
        self.own_cpu += time.thread_time() - cpu
        return time.perf_counter() - wall


def measure_recorder(*, n_epochs: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Train ResNet-20 on the digits in plain loops, one alone and others recorded, which take turns epoch by epoch.

    What a process pays once, the import of the NetCDF library, is not counted; opening and closing each recording is.

    Parameters
    ----------
    n_epochs : int
        Epochs of each, of 12 steps.
    tell : callable
        Takes lines about the progress.

    Returns
    -------
    dict
        JSON-able: the seconds of each epoch, and for each way of recording ``overhead``, the median over the epochs of
        what it adds to the plain loop's time, with its share of opening and closing; ``in_calls`` and ``processor``,
        the shares of time in its own calls and of its processor time.
    """
    x, y = load_data("digits")["train"]
    with tempfile.TemporaryDirectory() as folder:
        # The first recording of a process imports the NetCDF library, about half a second whatever is trained.
        with Recorder(Path(folder) / "first") as recorder:
            recorder.start(build_model("mlp", in_channels=1, input_size=8))
        trainings = {way: Training(Path(folder) / str(place), WAYS[way]) for place, way in enumerate(WAYS)}
        for training in trainings.values():  # warms up
            training.epoch(x, y)
        for turn in range(n_epochs):
            first = turn % len(WAYS)
            for way in [*list(WAYS)[first:], *list(WAYS)[:first]]:
                trainings[way].epoch(x, y)
            tell(f"  epoch {turn + 1}: " + ", ".join(f"{way} {of.epochs[-1]:.2f} s" for way, of in trainings.items()))
        for training in trainings.values():
            training.close()
    seconds = {way: training.epochs[1:] for way, training in trainings.items()}
    result: dict[str, Any] = {"n_epochs": n_epochs, "seconds": seconds, "ways": {}}
    plain = median(seconds["plain"])
    for way, training in trainings.items():
        if training.recorder is None:
            continue
        ratios = sorted(one / alone for one, alone in zip(seconds[way], seconds["plain"], strict=True))
        ends = training.ends / (n_epochs * plain)
        result["ways"][way] = {
            "overhead": median(ratios) - 1 + ends,
            "quartiles": [ratios[len(ratios) // 4] - 1 + ends, ratios[3 * len(ratios) // 4] - 1 + ends],
            "in_calls": training.in_calls / (sum(training.epochs) - training.in_calls) + ends,
            "processor": training.own_cpu / (training.cpu - training.own_cpu),
        }
    return result


def recorder_bars(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Hold the overheads to their bar."""
    return [
        {
            "what": f"recording ResNet-20 on the digits with {way}: time added",
            "wanted": BAR_OVERHEAD,
            "found": found["overhead"],
            "met": found["overhead"] <= BAR_OVERHEAD,
        }
        for way, found in result["ways"].items()
    ]


def recorder_report(content: dict[str, Any]) -> str:
    """Draw the table as Markdown."""
    result = content["recorder"]
    rows = [
        [
            way,
            f"{found['overhead']:+.1%}",
            f"{found['quartiles'][0]:+.1%} to {found['quartiles'][1]:+.1%}",
            f"{found['in_calls']:.1%}",
            f"{found['processor']:.1%}",
        ]
        for way, found in result["ways"].items()
    ]
    plain = median(result["seconds"]["plain"]) / 12
    return "\n\n".join(
        [
            "### Recording",
            f"ResNet-20 on the digits, batch {BATCH}, {result['n_epochs']} epochs of 12 steps, in turns; a step not "
            f"recorded takes {1000 * plain:.0f} ms.",
            table(["", "time added, median", "quartiles", "time in its calls", "its processor time"], rows),
            machine_line(content["machine"]),
        ]
    )
