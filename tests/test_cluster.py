"""Tasks on a Dask cluster of two processes: the same results as in this process, also when workers die."""

import os
import signal
import subprocess
import sys
import threading
import time

import cloudpickle
import pytest
import torch

from lltoolkit import cluster as module
from lltoolkit.cluster import DaskPool, connect, require_same_versions
from lltoolkit.tensors.examples import read_splits
from lltoolkit.tensors.network import Network
from tests.models import BY_NAME

distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")

CASE = BY_NAME["cnn_batchnorm"]
EXAMPLES = read_splits(CASE.data(train=40), None, 0)
OTHERS = read_splits(CASE.data(train=7), None, 0)


def make(examples, device):
    network = Network(CASE.model(), None, torch.device("cpu"), torch.float32)
    theta = network.flat.clone()

    def do(task):
        verb, argument = task
        if verb == "measure":
            torch.mul(theta, argument, out=network.flat)
            with torch.no_grad():
                return {split: float(network(part.inputs).square().sum()) for split, part in examples.items()}
        if verb == "sleep":
            time.sleep(argument)
        if verb == "raise":
            raise argument
        return device, os.getpid(), torch.get_num_threads(), torch.zeros(1).dtype

    return do


@pytest.fixture(scope="module")
def client():
    # A worker that is killed, and a task that fails, are logged as errors by Dask itself.
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def pool(client):
    with DaskPool(make, client, EXAMPLES) as pool:
        yield pool


def n_tasks(client):
    return client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))


def soon(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not (fulfilled := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return fulfilled


def test_results_are_those_of_this_process_bit_for_bit(pool):
    do = make(EXAMPLES, None)
    tasks = [("measure", 0.5 + place / 7) for place in range(20)]
    found = list(pool.run(tasks))
    assert sorted(task for task, _ in found) == tasks
    assert all(result == do(task) for task, result in found)
    assert list(pool.run([])) == []


def test_two_pools_with_one_model_have_their_own_examples(pool, client):
    with DaskPool(make, client, OTHERS) as other:
        tasks = [("measure", 1.0)] * 4
        assert {str(found) for _, found in other.run(tasks)} == {str(make(OTHERS, None)(tasks[0]))}
        assert {str(found) for _, found in pool.run(tasks)} == {str(make(EXAMPLES, None)(tasks[0]))}


def test_a_task_has_one_thread_and_the_callers_default_dtype(client):
    before = client.run(lambda: (torch.get_num_threads(), torch.get_default_dtype()))
    torch.set_default_dtype(torch.float64)
    try:
        with DaskPool(make, client, None) as pool:
            found = {result for _, result in pool.run([("sleep", 0.2)] * 6)}
    finally:
        torch.set_default_dtype(torch.float32)
    assert {(device, threads, dtype) for device, _, threads, dtype in found} == {(None, 1, torch.float64)}
    assert len({pid for _, pid, _, _ in found} | {os.getpid()}) == 3
    assert client.run(lambda: (torch.get_num_threads(), torch.get_default_dtype())) == before


def test_an_exception_comes_back_and_cancels_what_is_queued(pool, client):
    tasks = [("sleep", 0.0), ("raise", ValueError("bad cell")), *[("sleep", 0.3)] * 50]
    begun = time.monotonic()
    with pytest.raises(ValueError, match="bad cell"):
        list(pool.run(tasks))
    assert time.monotonic() - begun < 5  # of 7.5
    assert soon(lambda: n_tasks(client) == 2)  # the payload and the examples


def test_few_tasks_are_with_the_scheduler_and_none_when_the_caller_leaves(pool, client):
    run = pool.run([("sleep", 0.1)] * 100)
    next(run)
    assert n_tasks(client) <= 2 + 2 * module.IN_FLIGHT + 1  # the last is on its way out
    run.close()
    assert soon(lambda: n_tasks(client) == 2)


def test_a_closed_pool_leaves_nothing_on_the_cluster(client):
    with DaskPool(make, client, EXAMPLES) as pool:
        list(pool.run([("measure", 1.0)] * 4))
        assert soon(lambda: n_tasks(client) == 2)
    assert soon(lambda: n_tasks(client) == 0)
    assert soon(lambda: not any(client.run(lambda: list(module._FUNCTIONS)).values()))


def test_no_worker_is_told():
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as empty,
        connect(empty.scheduler_address) as client,
        pytest.raises(RuntimeError, match=r"no worker.*dask worker"),
        DaskPool(make, client, None, timeout=0.2),
    ):
        pass


def test_what_cannot_be_pickled_is_told(client):
    lock = threading.Lock()
    with pytest.raises(ValueError, match=r"can't be sent.*TypeError.*lock.*Give Objective a factory"):
        DaskPool(lambda examples, device: lock.locked, client, None)


# Last of those that use the cluster: it takes a while to get its worker back.
def test_killed_workers_are_survived(pool, client):
    tasks = [("measure", 0.5 + place / 7) for place in range(10)] + [("sleep", 0.2)] * 10
    do = make(EXAMPLES, None)
    found = []
    for task, result in pool.run(tasks):
        found.append((task, result))
        if len(found) == 5:
            os.kill(min(client.run(os.getpid).values()), signal.SIGKILL)
    assert sorted(task for task, _ in found) == sorted(tasks)
    assert all(result == do(task) for task, result in found if task[0] == "measure")


SAME = {"lltoolkit": "0.2.0", "torch": "2.13.0", "python": "3.11"}


def test_equal_versions_pass():
    require_same_versions(SAME, {"tcp://a:1": dict(SAME), "tcp://b:1": dict(SAME)})
    require_same_versions(SAME, {})


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"lltoolkit": "0.1.0"}, r"lltoolkit 0.1.0 on tcp://b:1, .*pip install lltoolkit==0.2.0\.$"),
        ({"torch": "2.4.0"}, r"\(lltoolkit 0.2.0, torch 2.13.0, python 3.11\): torch 2.4.0 on .*torch==2.13.0"),
        ({"lltoolkit": "(missing)", "python": "3.12"}, r"lltoolkit \(missing\) on .*python 3.12 on .*Python 3.11"),
    ],
)
def test_other_versions_are_named_with_their_workers(other, text):
    found = {"tcp://a:1": dict(SAME), **{f"tcp://{name}:1": SAME | other for name in "bcdef"}}
    with pytest.raises(RuntimeError, match=text) as caught:
        require_same_versions(SAME, found)
    assert "tcp://a" not in str(caught.value)
    assert "tcp://d:1 and 2 more" in str(caught.value)


def test_versions_are_asked_for_where_lltoolkit_is_missing():
    code = (
        "import pickle, sys; sys.modules['lltoolkit'] = None; print(pickle.loads(bytes.fromhex(sys.argv[1]))()); "
        "assert 'torch' not in sys.modules"
    )
    code = code.replace("import pickle", "import sys; sys.modules['torch'] = None; import pickle").rpartition(";")[0]
    probe = cloudpickle.dumps(module._probe()).hex()
    found = subprocess.run([sys.executable, "-c", code, probe], capture_output=True, text=True, check=True).stdout
    assert found.startswith("{'lltoolkit': '(missing)', 'torch': '(missing)', 'python': '3.")


def test_own_versions():
    import lltoolkit

    assert module._probe()() == {
        "lltoolkit": lltoolkit.__version__,
        "torch": torch.__version__.split("+")[0],
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
    }


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nowhere", ""])
def test_a_scheduler_that_does_not_answer_is_told(address):
    with pytest.raises(ConnectionError, match=r"no Dask scheduler answers at .*dask scheduler"):
        connect(address, timeout=0.5)


def test_a_machine_without_distributed_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ModuleNotFoundError, match=r"lltoolkit\[cluster\]"):
        connect("tcp://127.0.0.1:9")
