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


def measure_recorder(*, n_rounds: int, n_epochs: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Time ResNet-20 on the digits in a plain loop, alone and recorded, round by round.

    ``step()`` is called at every step. Starting and closing, which waits for the disk, are counted.

    Parameters
    ----------
    n_rounds : int
        Turns of each way.
    n_epochs : int
        Epochs of a turn, 12 steps each.
    tell : callable
        Takes lines about the progress.

    Returns
    -------
    dict
        JSON-able: the seconds of each turn; for each way of recording the medians over the rounds of what it adds to
        the plain loop's time, and of what its own calls and its thread take, as shares of the rest of the same turn.
    """
    x, y = load_data("digits")["train"]
    for options in WAYS.values():
        _train(x, y, options, 1)  # warms up
    turns: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for turn in range(n_rounds):
        first = turn % len(WAYS)
        for way in [*list(WAYS)[first:], *list(WAYS)[:first]]:
            turns[way].append(_train(x, y, WAYS[way], n_epochs))
        tell(f"  round {turn + 1}: " + ", ".join(f"{way} {turns[way][-1]['wall']:.2f} s" for way in WAYS))
    result: dict[str, Any] = {"n_rounds": n_rounds, "n_epochs": n_epochs, "turns": turns, "ways": {}}
    for way in list(WAYS)[1:]:
        ratios = sorted(one["wall"] / plain["wall"] for one, plain in zip(turns[way], turns["plain"], strict=True))
        result["ways"][way] = {
            "overhead": median(ratios) - 1,
            "least": ratios[0] - 1,
            "most": ratios[-1] - 1,
            "in_calls": median(turn["in_calls"] / (turn["wall"] - turn["in_calls"]) for turn in turns[way]),
            "processor": median(turn["own_cpu"] / (turn["cpu"] - turn["own_cpu"]) for turn in turns[way]),
        }
    return result


def _train(x: torch.Tensor, y: torch.Tensor, options: dict[str, Any] | None, n_epochs: int) -> dict[str, float]:
    model = build_model("resnet20", in_channels=1, input_size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    in_calls = own_cpu = 0.0

    def count(call: Callable[..., object], *given: object, **named: object) -> None:
        nonlocal in_calls, own_cpu
        wall, cpu = time.perf_counter(), time.thread_time()
        call(*given, **named)
        in_calls, own_cpu = in_calls + time.perf_counter() - wall, own_cpu + time.thread_time() - cpu

    with tempfile.TemporaryDirectory() as folder:
        wall, cpu, of_thread = time.perf_counter(), time.process_time(), time.thread_time()
        recorder = None if options is None else Recorder(Path(folder) / "run", **options)
        if recorder is not None:
            count(recorder.start, model)
        for epoch in range(n_epochs):
            for inputs, target in zip(x.split(BATCH), y.split(BATCH), strict=True):
                loss = functional.cross_entropy(model(inputs), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if recorder is not None:
                    count(recorder.step, model, epoch=epoch, learning_rate=0.1, loss=loss)
        if recorder is not None:
            count(recorder.close)
        wall, cpu, of_thread = (
            time.perf_counter() - wall,
            time.process_time() - cpu,
            time.thread_time() - of_thread,
        )
    # On one thread of torch, whatever this thread did not do is the Recorder's own thread.
    own_cpu += max(cpu - of_thread, 0.0) if recorder is not None else 0.0
    return {"wall": wall, "cpu": cpu, "in_calls": in_calls, "own_cpu": own_cpu}


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
            f"{found['least']:+.1%} to {found['most']:+.1%}",
            f"{found['in_calls']:.1%}",
            f"{found['processor']:.1%}",
        ]
        for way, found in result["ways"].items()
    ]
    plain = median(turn["wall"] for turn in result["turns"]["plain"]) / (12 * result["n_epochs"])
    return "\n\n".join(
        [
            "### Recording",
            f"ResNet-20 on the digits, batch {BATCH}, {result['n_epochs']} epochs of 12 steps a turn, "
            f"{result['n_rounds']} rounds; a step without recording takes {1000 * plain:.0f} ms.",
            table(["", "time added, median", "range of the rounds", "time in its calls", "its processor time"], rows),
            machine_line(content["machine"]),
        ]
    )
