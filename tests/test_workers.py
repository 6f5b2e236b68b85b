"""Tasks in worker processes: the same results as in this process, whatever happens to a worker or to the parent."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from lltoolkit.tensors.examples import read_splits
from lltoolkit.tensors.network import Network
from lltoolkit.tensors.shared import share
from lltoolkit.workers import LocalPool, describe_death
from tests.models import BY_NAME

CASE = BY_NAME["cnn_batchnorm"]
EXAMPLES = read_splits(CASE.data(train=40), None, 0)


class OwnError(Exception):
    """Can be pickled but not unpickled, as many can: what it passes on is not what it takes."""

    def __init__(self, number, *, unit):
        super().__init__(f"{number} {unit}")


def make(examples, device):
    """One function for all tests, so that they share two workers: starting one takes seconds."""
    network = Network(CASE.model(), None, torch.device("cpu"), torch.float32)
    theta = network.flat.clone()

    def measure(factor):
        torch.mul(theta, factor, out=network.flat)
        with torch.no_grad():
            return {split: float(network(part.inputs).square().sum()) for split, part in examples.items()}

    def do(task):
        verb, argument = task
        if verb == "measure":
            return measure(argument)
        if verb == "print":
            print("a line", argument, "x" * 70_000, flush=True)  # noqa: T201
            os.write(1, b"\x00\x00\x00\x00\x00\x00\x00\x01!")
            return argument
        if verb == "sleep":
            time.sleep(argument)
            return os.getpid(), device
        if verb == "raise":
            raise argument
        if verb == "exit":
            sys.exit(argument)
        if verb == "die":
            os.kill(os.getpid(), argument)
        if verb == "die once":
            if not Path(argument).exists():
                Path(argument).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return "alive"
        if verb == "lambda":
            return lambda: argument
        if verb == "own error":
            raise OwnError(argument, unit="nat")
        heavy = {
            "xarray",
            "netCDF4",
            "matplotlib",
            "pandas",
            "scipy",
            "sklearn",
            "pyvista",
            "torchvision",
            "distributed",
        }
        return {
            "threads": torch.get_num_threads(),
            "heavy": sorted(heavy & set(sys.modules)),
            "main": Path(sys.modules["__main__"].__file__).name,
            "stdin": sys.stdin.read(),
            "own session": os.getsid(0) == os.getpid(),
            "dtype": torch.zeros(1).dtype,
            "folder": os.getcwd(),
        }

    return do


@pytest.fixture(scope="module")
def pool():
    with share(EXAMPLES) as shared, LocalPool(make, 2, shared, devices=("cpu", "meta")) as pool:
        yield pool


def gone(pids, seconds=2.0):
    """Wait for processes to be gone; those that are left."""
    end = time.monotonic() + seconds
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < end:
        time.sleep(0.02)
    return not left


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return not status.startswith("Z") and bool(status)  # a zombie is gone: its new parent has not looked yet


def test_results_are_those_of_this_process_bit_for_bit(pool):
    do = make(EXAMPLES, None)
    tasks = [("measure", 0.5 + place / 7) for place in range(20)]
    found = list(pool.run(tasks))
    assert sorted(task for task, _ in found) == tasks
    assert all(result == do(task) for task, result in found)


def test_workers_are_light_and_know_nothing_of_the_caller(pool):
    found = [result for task, result in pool.run([("describe", 0), ("sleep", 0.5)] * 2) if task[0] == "describe"]
    assert found == 2 * [
        {
            "threads": 1,
            "heavy": [],
            "main": "workers.py",
            "stdin": "",
            "own session": True,
            "dtype": torch.float32,
            "folder": os.getcwd(),
        }
    ]


def test_both_workers_work_and_each_task_is_done_once(pool):
    begun = time.monotonic()
    found = list(pool.run([("sleep", 0.05)] * 20))
    assert len(found) == 20
    (one, device), (other, another) = {result for _, result in found}
    assert len({one, other, os.getpid()}) == 3
    assert {device, another} == {"cpu", "meta"}
    assert time.monotonic() - begun > 0.5  # neither was told to do two at a time


def test_no_tasks_no_results(pool):
    assert list(pool.run([])) == []


def test_what_a_model_prints_is_no_answer(pool):
    assert sorted(result for _, result in pool.run([("print", place) for place in range(6)])) == list(range(6))


def test_a_run_that_is_left_leaves_nothing_to_the_next(pool):
    first = pool.run([("sleep", 0.1)] * 10)
    next(first)
    first.close()
    tasks = [("measure", 1.0), ("measure", 2.0)]
    assert sorted(task for task, _ in pool.run(tasks)) == tasks


def test_an_exception_comes_back_as_it_was_with_its_place(pool):
    for error in (ValueError("bad cell"), torch.OutOfMemoryError("no room"), FileNotFoundError(2, "no such", "file")):
        with pytest.raises(type(error)) as caught:
            list(pool.run([("raise", error)]))
        assert str(caught.value) == str(error)
        assert "raise argument" in caught.value.__notes__[-1]
        assert "test_workers.py" in caught.value.__notes__[-1]


def test_what_was_done_before_an_error_is_handed_out(pool):
    run = pool.run([("sleep", 0.0), ("measure", 1.0), ("sleep", 0.3), ("raise", ValueError("late"))])
    done = []
    with pytest.raises(ValueError, match="late"):
        done.extend(task for task, _ in run)
    assert ("measure", 1.0) in done


def test_an_exception_that_cannot_be_sent_is_told(pool):
    with pytest.raises(RuntimeError, match="a task failed with OwnError: 3 nat") as caught:
        list(pool.run([("own error", 3)]))
    assert "in do\n    raise OwnError(argument, unit=" in caught.value.__notes__[-1]
    with pytest.raises(RuntimeError, match="SystemExit: 5"):
        list(pool.run([("exit", 5)]))


def test_a_result_may_be_of_a_class_that_only_the_caller_knows(pool):
    ((_, result),) = pool.run([("lambda", 3)])
    assert result() == 3


def test_a_killed_worker_is_replaced_and_all_results_come(pool, tmp_path):
    tasks = [("measure", 1.0), ("die once", str(tmp_path / "died")), *[("measure", 1 + n / 3) for n in range(8)]]
    found = list(pool.run(tasks))
    assert sorted(task for task, _ in found) == sorted(tasks)
    do = make(EXAMPLES, None)
    assert all(result == ("alive" if task[0] == "die once" else do(task)) for task, result in found)


def test_a_task_that_kills_each_of_its_workers_is_told(pool):
    with pytest.raises(RuntimeError, match=r"one task killed 3 .* signal SIGSEGV.*compiled code") as caught:
        list(pool.run([("die", signal.SIGSEGV)]))
    assert "Current thread" in str(caught.value)  # the worker's last words say where
    assert [task for task, _ in pool.run([("measure", 1.0)])] == [("measure", 1.0)]


@pytest.mark.parametrize(
    ("code", "text"),
    [(-9, "signal SIGKILL.*memory runs out"), (-11, "SIGSEGV.*compiled"), (1, "exit code 1"), (-120, "signal 120")],
)
def test_a_death_is_described(code, text):
    assert re.search(text, describe_death(code, []))
    assert describe_death(code, ["one", "two"]).endswith("\none\ntwo")


def test_a_pool_that_is_closed_says_so():
    pool = LocalPool(make, 1, None)
    with pytest.raises(RuntimeError, match="closed"):
        list(pool.run([1]))
    with pytest.raises(ValueError, match="n_workers=0"):
        LocalPool(make, 0, None)


def test_what_cannot_be_pickled_is_told_before_any_process_starts():
    lock = threading.Lock()
    with pytest.raises(ValueError, match=r"can't be sent.*TypeError.*lock.*Give Objective a factory"):
        LocalPool(lambda examples, device: lock.locked, 2, None)


class Unloadable:
    def __reduce__(self):
        return int, ("no number",)


def test_what_cannot_be_unpickled_is_told():
    broken = Unloadable()
    with (
        LocalPool(lambda examples, device: broken.anything, 1, None) as pool,
        pytest.raises(ValueError, match=r"can't be rebuilt.*ValueError: invalid literal.*factory") as caught,
    ):
        list(pool.run([1]))
    assert "pickle.loads" in caught.value.__notes__[-1]


def test_a_worker_that_cannot_start_is_told(tmp_path, monkeypatch):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho last words >&2\nexit 7\n")
    broken.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(broken))
    with (
        LocalPool(make, 2, None) as pool,
        pytest.raises(RuntimeError, match=r"no worker process can be started.*exit code 7(.|\n)*last words"),
    ):
        list(pool.run([1]))


# Scripts that come by stdin have no file, and no `if __name__` guard: their model's class lives in __main__ alone.
SCRIPT = """
import os, sys
from pathlib import Path
import torch
from torch import nn
from lltoolkit.tensors.examples import read_splits
from lltoolkit.tensors.network import Network
from lltoolkit.workers import LocalPool

folder, tasks = Path(sys.argv[1]), sys.argv[2:]
(folder / "main").touch(exist_ok=False)  # a second process that runs this fails

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
    def forward(self, x):
        print("forward")
        return self.layer(x).sum()

network = Network(Net(), None, torch.device("cpu"), torch.float32)
examples = read_splits((torch.ones(10, 4, dtype=torch.float32), torch.zeros(10)), None, 0)

def make(examples, device):
    def do(task):
        (folder / f"pid {os.getpid()}").touch()
        while task == "busy":
            (folder / "busy").touch()  # busy in Python, as a model may be
        network.flat.fill_(float(task))
        return float(network(examples["train"].inputs))
    return do

with LocalPool(make, 1, examples) as pool:
    for task, value in pool.run(tasks):
        print(task, value, flush=True)
"""


def workers_in(folder):
    return [int(path.name.split()[1]) for path in folder.glob("pid *")]


@pytest.fixture
def busy(tmp_path):
    """A script on stdin, in a session of its own, whose worker has done two tasks and computes on for ever."""
    with subprocess.Popen(
        [sys.executable, "-", str(tmp_path), "1", "2", "busy"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as parent:
        parent.stdin.write(SCRIPT.encode())
        parent.stdin.close()
        while not (tmp_path / "busy").exists():
            assert parent.poll() is None, parent.stderr.read()
            time.sleep(0.05)
        try:
            yield parent, workers_in(tmp_path)
        finally:
            parent.kill()


def test_no_worker_outlives_a_killed_parent(busy):
    parent, workers = busy
    assert [alive(pid) for pid in workers] == [True]
    parent.kill()
    assert gone(workers)


def test_an_interrupt_from_the_terminal_leaves_no_process(busy):
    parent, workers = busy
    os.killpg(parent.pid, signal.SIGINT)
    # The model's class was the script's own, and what it prints is elsewhere.
    assert parent.stdout.read() == b"1 150.0\n2 300.0\n"
    assert b"KeyboardInterrupt" in parent.stderr.read()
    assert parent.wait() == -signal.SIGINT
    assert gone(workers)


def test_a_notebook_with_its_own_model_and_default_dtype(tmp_path):
    # As a kernel runs a cell: the code is of __main__, and sys.modules["__main__"] knows nothing of it.
    scope = {"__name__": "__main__", "found": []}
    code = SCRIPT.replace("sys.argv", repr(["", str(tmp_path), "1"]))
    code = code.replace("return float(", "return torch.zeros(1).dtype, float(")
    code = code.replace("print(task, value, flush=True)", "found.append(value)")
    torch.set_default_dtype(torch.float64)
    try:
        exec(code, scope)
    finally:
        torch.set_default_dtype(torch.float32)
    assert scope["found"] == [(torch.float64, 150.0)]
    assert gone(workers_in(tmp_path))
