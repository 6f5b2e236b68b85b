"""What is mapped is what was written, in the same layout; the file has no name and one set of pages."""

import os
import pickle
import resource
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lltoolkit.tensors import shared as module
from lltoolkit.tensors.examples import Examples, read_splits
from lltoolkit.tensors.shared import Shared, lay_out, read, share

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]


def leaves(examples):
    for part in examples.values():
        inputs = part.inputs
        yield from [inputs] if torch.is_tensor(inputs) else inputs.values() if isinstance(inputs, dict) else inputs
        if part.target is not None:
            yield part.target


def identical(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride() and a.tolist() == b.tolist()


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, part in expected.items():
        assert type(found[name].inputs) is type(part.inputs)
        assert found[name].n_total == part.n_total
        assert (found[name].target is None) == (part.target is None)
        if isinstance(part.inputs, dict):
            assert list(found[name].inputs) == list(part.inputs)
    assert all(identical(a, b) for a, b in zip(leaves(found), leaves(expected), strict=True))


def test_every_form_of_examples_comes_back(case):
    examples = read_splits(case.data(), {"train": 5}, 0)
    with share(examples) as file:
        assert_same(file.open(), examples)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.randoms(use_true_random=False), st.sampled_from(DTYPES))
def test_any_dense_layout_is_kept(shape, random, dtype):
    order = random.sample(range(len(shape)), len(shape))
    numbers = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
    tensor = numbers.permute(order)
    layout, pieces = lay_out({"train": Examples(tensor, None, 7)})
    memory = bytearray(layout.n_bytes)
    for offset, data in pieces:
        memory[offset : offset + len(data)] = bytes(data.tolist())
    assert identical(read(layout, memory)["train"].inputs, tensor)


def test_a_tensor_with_gaps_or_repeats_is_written_without_them():
    gaps, repeats = torch.arange(24.0).reshape(4, 6)[:, ::2], torch.arange(3.0).expand(50, 3)
    with share({"a": Examples(gaps, None, 4), "b": Examples(repeats, None, 50)}) as file:
        assert file.layout.n_bytes == 2 * module.PAGE
        found = file.open()
    assert torch.equal(found["a"].inputs, gaps)
    assert torch.equal(found["b"].inputs, repeats)


def test_channels_last_stays_channels_last():
    images = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    with share({"train": Examples(images, torch.arange(4), 4)}) as file:
        found = file.open()["train"].inputs
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, images)


def test_the_file_has_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with share({"train": Examples(torch.ones(5, 2), None, 5)}) as file:
        assert not list(tmp_path.iterdir())
        found = file.open()["train"].inputs
        descriptor = file.descriptor
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert found.sum() == 10  # what is mapped outlives the file


def test_another_process_maps_the_same_pages_and_cannot_change_them():
    # The child sees what is written to the file after it has opened it, so it has no copy; the parent sees nothing of
    # what the child does to its tensors.
    code = """
import os, pickle, sys
from lltoolkit.tensors.shared import Shared
descriptor, layout = pickle.loads(bytes.fromhex(sys.argv[1]))
inputs = Shared(descriptor, layout).open()["train"].inputs
os.pwrite(descriptor, bytes(4), 0)
before = inputs.tolist()
inputs.fill_(9)
print(before, inputs.tolist())
"""
    with share({"train": Examples(torch.tensor([1.0, 2.0]), None, 2)}) as file:
        mine = file.open()["train"].inputs
        about = pickle.dumps((file.descriptor, file.layout)).hex()
        child = subprocess.run(
            [sys.executable, "-c", code, about],
            pass_fds=[file.descriptor],
            capture_output=True,
            text=True,
            check=True,
        )
        assert child.stdout.strip() == "[0.0, 2.0] [9.0, 9.0]"
        assert mine.tolist() == [0.0, 2.0]
        assert Shared(file.descriptor, file.layout).open()["train"].inputs.tolist() == [0.0, 2.0]


def test_no_room_is_told():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"examples \(0 MB\) can't be written to .*File too large.*TMPDIR"):
            share({"train": Examples(torch.ones(500, 2), None, 5)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
