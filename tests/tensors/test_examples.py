"""Every accepted form of data gives the same examples, drawn once and kept."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lltoolkit import Objective
from lltoolkit.tensors.examples import choose, read_splits
from tests.models import seeded

N = 11
X, Y = seeded(lambda: (torch.randn(N, 3), torch.randint(2, (N,))), 5)


class Pairs(Dataset):
    """A map-style data set of tuples of NumPy arrays and Python numbers."""

    def __len__(self):
        return N

    def __getitem__(self, place):
        return X[place].numpy(), int(Y[place])


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(X[place], Y[place]) for place in range(N)])


class Dicts(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, place):
        return {"x": X[place], "labels": Y[place]}


def swap(batch):
    """Collate (target, inputs) to (inputs, target)."""
    return torch.stack([pair[1] for pair in batch]), torch.stack([pair[0] for pair in batch])


def read(split, n_examples=None, seed=0):
    return read_splits({"train": split}, n_examples, seed)["train"]


FORMS = {
    "tensors": (X, Y),
    "list": [X, Y],
    "arrays": (X.numpy(), Y.numpy()),
    "rows": (X.tolist(), Y.tolist()),
    "tensor dataset": TensorDataset(X, Y),
    "own dataset": Pairs(),
    "subset of a dataset": Subset(TensorDataset(torch.cat([X, X]), torch.cat([Y, Y])), range(N)),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=4),
    "shuffling loader": DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True),
    "loader that drops the last batch": DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True, drop_last=True),
    "loader with a sampler": DataLoader(TensorDataset(X, Y), sampler=RandomSampler(Pairs())),
    "loader that collates": DataLoader(TensorDataset(Y, X), batch_size=4, collate_fn=swap),
    "loader of a stream": DataLoader(Stream(), batch_size=4),
    "loader of ready batches": DataLoader([(X[:6], Y[:6]), (X[6:], Y[6:])], batch_size=None),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_examples_in_the_same_order(form):
    examples = read(form)
    torch.testing.assert_close(examples.inputs, X, rtol=0, atol=1e-7)
    assert torch.equal(examples.target, Y)
    assert (len(examples), examples.n_total) == (N, N)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_draw(form):
    drawn = read(form, n_examples=5, seed=3)
    rows = choose(N, 5, 3, "train")
    torch.testing.assert_close(drawn.inputs, X[rows], rtol=0, atol=1e-7)
    assert torch.equal(drawn.target, Y[rows])
    assert (len(drawn), drawn.n_total) == (5, N)


@pytest.mark.parametrize("form", [{"x": X, "labels": Y}, Dicts(), DataLoader(Dicts(), batch_size=4, shuffle=True)])
def test_dict_batches_keep_their_names_and_have_no_target(form):
    examples = read(form, n_examples=5)
    rows = choose(N, 5, 0, "train")
    assert examples.target is None
    assert list(examples.inputs) == ["x", "labels"]
    assert torch.equal(examples.inputs["x"], X[rows])
    assert torch.equal(examples.inputs["labels"], Y[rows])


@pytest.mark.parametrize("form", [((X, X + 1), Y), TensorDataset(X, Y), ({"a": X, "b": X + 1}, Y)])
def test_batches_are_the_examples_in_order(form):
    examples = read(form)
    parts = list(examples.batches(4))
    assert [part.size for part in parts] == [4, 4, 3]
    assert [part.size for part in examples.batches(5, smallest=2)] == [5, 6]
    leaf = next(iter(examples.inputs.values())) if isinstance(examples.inputs, dict) else examples.inputs
    leaf = leaf[0] if isinstance(leaf, tuple) else leaf
    assert torch.equal(leaf, X)
    assert torch.equal(torch.cat([part.target for part in parts]), Y)


def test_a_single_split_is_called_train():
    assert list(read_splits((X, Y), None, 0)) == ["train"]
    assert list(read_splits(TensorDataset(X, Y), None, 0)) == ["train"]
    assert list(read_splits({"x": X, "labels": Y}, None, 0)) == ["train"]  # a batch, not two splits
    assert list(read_splits({"b": (X, Y), "a": (X, Y)}, None, 0)) == ["b", "a"]  # in the order given


# --- which examples


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 2**40))
def test_a_draw_is_ascending_without_repetition_and_capped(total, wanted, seed):
    rows = choose(total, wanted, seed, "train")
    assert len(rows) == min(total, wanted)
    assert (rows.diff() > 0).all()
    assert rows[0] >= 0
    assert rows[-1] < total
    assert torch.equal(rows, choose(total, wanted, seed, "train"))


def test_every_example_is_equally_likely():
    counts = torch.zeros(10)
    for seed in range(600):
        counts[choose(10, 3, seed, "train")] += 1
    # 180 expected each, standard deviation 11; four of them.
    assert (counts - 180).abs().max() < 45


def test_a_draw_depends_on_seed_and_split_and_on_nothing_drawn_before():
    base = choose(1000, 20, 0, "train")
    torch.rand(17)
    assert torch.equal(choose(1000, 20, 0, "train"), base)
    others = [choose(1000, 20, seed, "train") for seed in (1, 2, 3)] + [choose(1000, 20, 0, "test")]
    assert len({tuple(rows.tolist()) for rows in [base, *others]}) == 5


def test_a_draw_does_not_depend_on_the_split_beside_it():
    alone = read_splits({"train": (X, Y)}, 4, 0)["train"]
    beside = read_splits({"test": (X[:2], Y[:2]), "train": (X, Y)}, {"train": 4}, 0)
    assert torch.equal(alone.inputs, beside["train"].inputs)
    assert (len(beside["test"]), beside["test"].n_total) == (2, 2)


def test_torchs_generator_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    read(DataLoader(TensorDataset(X, Y), shuffle=True), n_examples=3)
    assert torch.equal(torch.rand(1), expected)


# --- which examples a loader means


def test_a_loader_over_part_of_a_dataset_is_that_part():
    loader = DataLoader(TensorDataset(X, Y), batch_size=2, sampler=SubsetRandomSampler([7, 2, 5]))
    examples = read(loader)
    assert torch.equal(examples.inputs, X[[2, 5, 7]])
    assert (len(examples), examples.n_total) == (3, 3)
    assert read(loader).sha256() == examples.sha256()
    drawn = read(loader, n_examples=2)
    assert torch.equal(drawn.inputs, X[[2, 5, 7]][choose(3, 2, 0, "train")])


def test_a_loader_with_batches_of_its_own_is_read_in_their_order():
    batches = BatchSampler(SequentialSampler(range(4, N)), 3, drop_last=False)
    batches_by_hand = [[4, 5], [9, 6, 0]]
    assert torch.equal(read(DataLoader(TensorDataset(X, Y), batch_sampler=batches_by_hand)).inputs, X[[4, 5, 9, 6, 0]])
    assert len(read(DataLoader(TensorDataset(X, Y), batch_sampler=batches))) == N - 4


def test_a_loader_that_samples_with_replacement_gives_what_it_yields():
    sampler = WeightedRandomSampler([0.0] * 4 + [1.0] + [0.0] * (N - 5), 6)
    assert torch.equal(read(DataLoader(TensorDataset(X, Y), sampler=sampler)).inputs, X[[4] * 6])


# --- copies


def test_changing_tensors_and_arrays_later_does_not_show():
    for make in (lambda: (X.clone(), Y.clone()), lambda: (X.numpy().copy(), Y.numpy().copy())):
        x, y = make()
        examples = read((x, y))
        x[:] = 0
        y[:] = 0
        assert torch.equal(examples.inputs, X)
        assert torch.equal(examples.target, Y)


def test_arrays_of_any_layout_are_read():
    readonly = X.numpy().copy()
    readonly.flags.writeable = False
    assert torch.equal(read((readonly, Y)).inputs, X)
    assert torch.equal(read((X.numpy()[::-1], Y)).inputs, X.flip(0))
    assert torch.equal(read((np.asfortranarray(X.numpy()), Y)).inputs, X)
    assert torch.equal(read((X.numpy().astype(">f4"), Y)).inputs, X)


def test_targets_keep_float64():
    y = 1000 + torch.rand(N, 1, dtype=torch.float64)
    model = seeded(lambda: nn.Linear(3, 1), 0)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.fill_(1000)
    measured = Objective(model, (X, y), loss="mse").at_minimizer()["train", "loss"]
    assert measured == pytest.approx(float((y - 1000).square().mean()), rel=1e-12)


# --- augmentation


class Augmented(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, place):
        return X[place] + torch.rand(3), Y[place]


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: DataLoader(data, batch_size=4, shuffle=True)])
def test_a_dataset_that_augments_is_told(wrap):
    with pytest.warns(UserWarning, match=r"split 'train': two reads .* differ.*take the augmentation out"):
        read(wrap(Augmented()))


def test_the_warning_points_at_the_callers_line():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Objective(nn.Linear(3, 2), {"train": Augmented()})
    assert [item.filename for item in caught] == [__file__]


# --- bad input


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ((X, Y[:5]), r"split 'train': inputs and target have \[5, 11\] examples"),
        ((X[:0], Y[:0]), r"split 'train' is empty: it has 0 examples. Leave it out"),
        (TensorDataset(X[:0], Y[:0]), r"split 'train' is empty"),
        (DataLoader(TensorDataset(X[:0], Y[:0])), r"split 'train' is empty"),
        (DataLoader([], batch_size=None), r"split 'train' is empty"),
        (3, r"split 'train' is a int. Give \(inputs, target\), a map-style Dataset, a DataLoader"),
        ("digits", r"split 'train' is a str"),
        (Stream(), r"split 'train' is a Stream. Give .* a DataLoader"),
        (TensorDataset(X, X, Y), r"split 'train' yields a list.*collate_fn"),
        ((X, ["a"] * N), r"split 'train' holds a list that is no tensor or array of numbers"),
        ((X, 3), r"split 'train' holds a single number"),
        (DataLoader([(X[:6], Y[:6]), (X[6:, :2], Y[6:])], batch_size=None), r"split 'train': its batches.*\(6, 3\)"),
    ],
)
def test_bad_splits_are_named(split, message):
    with pytest.raises(ValueError, match=message):
        read(split)


def test_inputs_without_targets_are_refused():
    with pytest.raises(ValueError, match=r"split 'train' yields a Tensor for a batch; \(inputs, target\)"):
        read_splits(X, None, 0)


def test_no_splits_are_refused():
    with pytest.raises(ValueError, match="data is an empty mapping"):
        read_splits({}, None, 0)
