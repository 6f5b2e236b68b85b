"""Sentences on what a result was measured of and how; each is empty where the attributes don't tell. Torch-free."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from lltoolkit.labelled.facts import config_of, counts_of, kind_of, read_json

LOSSES = {"cross_entropy": "mean cross-entropy, in nats", "mse": "mean squared error"}
BUFFERS = {
    "frozen": "Running statistics of batch norm, where the network has any, were held fixed",
    "interpolate": "Running statistics of batch norm, where the network has any, were moved along with the weights",
    "recompute": "Running statistics of batch norm, where the network has any, were estimated anew at every point",
}
ENGINES = {
    "plain": "",
    "flat": "",
    "hessian": "",
    "folded": ", traced, with batch norm (where it has any) folded into the convolutions",
    "batched": ", several grid points at once",
}
ARITHMETIC = {"tf32": " with TensorFloat-32 products", "bf16": " with bfloat16 arithmetic inside"}
HASHES = {
    "theta_sha256": "weights",
    "data_sha256": "examples",
    "subspace_id": "subspace",
    "config_sha256": "configuration",
}


def number(value: Any) -> str:
    """Write a number to four digits, a whole one in full."""
    value = float(value)
    return f"{int(value):,}" if math.isfinite(value) and value == int(value) and abs(value) < 1e15 else f"{value:.4g}"


def percent(share: Any) -> str:
    """Write a share as a percentage, to three digits."""
    text = f"{100 * float(share):.3g}"
    return f"more than {99.9 if text == '100' else text} %" if text == "100" and share < 1 else f"{text} %"


def listed(words: Iterable[str]) -> str:
    """Join words: ``a``, ``a and b``, ``a, b and c``."""
    *first, last = list(words) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def plural(count: int, word: str) -> str:
    """Count something: ``1 cell``, ``2 cells``."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def known(attrs: Mapping[Any, Any], name: str) -> Any:
    """Give an attribute, None where there is none or it says that nothing is known."""
    value = attrs.get(name)
    empty = value is None or (isinstance(value, str) and value in ("", "none", "unknown"))
    return None if empty or (isinstance(value, float) and math.isnan(value)) else value


def tell_model(attrs: Mapping[Any, Any]) -> str:
    """Name the network and its size: ``vgg9 (2,675,818 parameters)``."""
    name, size = known(attrs, "model"), known(attrs, "n_params")
    if size is None:
        return str(name or "a network")
    # Of several networks it is a text, "75002 to 1184714".
    size = re.sub(r"\d+", lambda n: number(int(n[0])), size) if isinstance(size, str) else number(size)
    return f"{name or 'a network'} ({size} parameters)"


def tell_software(attrs: Mapping[Any, Any]) -> str:
    """Say what computed it: `` with lltoolkit 0.1.0 and PyTorch 2.13.0 on a CPU``."""
    names = {"lltoolkit_version": "lltoolkit", "torch_version": "PyTorch"}
    told = listed(f"{word} {attrs[name]}" for name, word in names.items() if known(attrs, name))
    device = str(known(attrs, "device") or "")
    where = {"": "", "cpu": " on a CPU"}.get(device, " on a GPU" if device.startswith("cuda") else f" on {device}")
    return f"{f' with {told}' if told else ''}{where}"


def tell_loss(config: Mapping[str, Any]) -> str:
    """Say what the loss is: ``mean cross-entropy, in nats``."""
    loss = known(config, "loss")
    if loss is None:
        return ""
    weighted = f", each example counted by {config['count']}" if known(config, "count") else ""
    return f"{LOSSES.get(str(loss), f'mean of {loss}')}{weighted}"


def tell_data(result: xr.Dataset, of: str = "") -> str:
    """Say over which examples loss and metrics were taken, how they were drawn, and how inputs were normalized."""
    attrs, config = result.attrs, config_of(result)
    loss, metrics = tell_loss(config), config.get("metrics") or {}
    names = ["accuracy" if name == "accuracy" else f"{name} ({function})" for name, function in metrics.items()]
    subject = f"{listed([f'The loss ({loss})' if loss else 'The loss', *names])}{of}"
    over, drawn = _examples(attrs, config)
    sentence = f"The loss is the {loss}" if loss else ""
    if over:
        seed = known(config, "seed")
        sentence = f"{subject} {'were' if names else 'was'} taken over {over}"
        sentence += f", drawn at random without replacement{f' (seed {seed})' if seed is not None else ''}" * drawn
    return join([sentence, tell_normalization(attrs.get("data_normalize"))])


def _examples(attrs: Mapping[Any, Any], config: Mapping[str, Any]) -> tuple[str, bool]:
    """Say how many examples of each split, and whether they were drawn from more."""
    told = known(attrs, "examples")
    if told is not None:  # "train 300 of 1437, test 300 of 360"
        parts = [part.rpartition(" of ") for part in str(told).split(", ")]
        rows = [(*before.rpartition(" ")[::2], total) for before, _, total in parts]
        words = [
            f"all {number(n)} {split} examples" if n == total else f"{number(n)} of {number(total)} {split} examples"
            for split, n, total in rows
        ]
        return listed(words), any(n != total for _, n, total in rows)
    counts = config.get("n_examples")
    if isinstance(counts, Mapping):
        return listed(f"{number(n)} {split} examples" for split, n in counts.items()), False
    return "", False


def tell_normalization(told: Any) -> str:
    """Say how inputs were normalized."""
    told = str("unknown" if told is None else told)
    if told in ("unknown", "as given", ""):
        return ""
    if told == "none":
        return "Inputs were not normalized"
    if told.startswith("mean="):
        mean, _, std = told.removeprefix("mean=").partition(" std=")
        plain = {"mean": mean.replace(",", ", "), "std": std.replace(",", ", ")}
        return f"Inputs were normalized with mean {plain['mean']} and standard deviation {plain['std']}"
    return f"Inputs were normalized as {told}"


def tell_parameters(chosen: Any) -> str:
    """Say which parameters something is of: nothing for all of them."""
    if chosen in (None, "all", "none", ""):
        return ""
    if chosen == "weights":
        return " in the weights with two axes or more"
    return f" in the parameters chosen by {chosen}"


def tell_numerics(attrs: Mapping[Any, Any], config: Mapping[str, Any]) -> str:
    """Say how batch-norm statistics were treated, which parameters moved, and in what arithmetic."""
    chosen = known(config, "parameters")
    only = f'Only the parameters chosen by "{chosen}" were moved' if chosen not in (None, "all") else ""
    dtype = known(attrs, "dtype")
    ran = ""
    if dtype is not None:
        size = known(attrs, "batch_size")
        ran = f"The network ran in {dtype}{ARITHMETIC.get(str(attrs.get('precision')), '')}"
        ran += f" in batches of at most {number(size)}" if size is not None else ""
        ran += ENGINES.get(str(attrs.get("engine")), f" (engine {attrs.get('engine')})" * bool(known(attrs, "engine")))
        if attrs.get("n_cells_smaller_batch"):
            ran += (
                f", at {plural(int(attrs['n_cells_smaller_batch']), 'grid point')} in smaller ones for lack of memory"
            )
    return join([BUFFERS.get(str(attrs.get("buffers")), ""), only, ran])


def tell_cells(result: xr.Dataset) -> str:
    """Count the grid points that were computed, filled in and left, and those that are no numbers."""
    counts = counts_of(result)
    if not counts:
        return ""
    total = sum(counts.values())
    if counts["computed"] == total:
        sentence = f"All {total:,} points were computed"
        sentence += " on all of these examples" if kind_of(result) == "surface" else ""
    else:
        words = {"computed": "computed", "estimated": "estimated from a sample of the examples, calibrated on the "
                 "computed ones", "interpolated": "interpolated by kriging", "missing": "not computed"}  # fmt: skip
        parts = [f"{counts[word]:,} were {told}" for word, told in words.items() if counts[word]]
        sentence = f"Of {total:,} points {listed(parts)}"
    if (tolerance := known(result.attrs, "tolerance")) is not None:
        scale = listed([_scale(result), *(["in accuracy"] if "accuracy" in result else [])])
        sentence += f"; the tolerance was an error of {number(tolerance)} {scale}"
    broken = [
        f"{plural(int(result.attrs[name]), 'point')} gave {word}"
        for name, word in (("n_nan", "NaN"), ("n_inf", "an infinite loss"))
        if result.attrs.get(name)
    ]
    return join([sentence, listed(broken)])


def tell_hashes(attrs: Mapping[Any, Any]) -> str:
    """Give the short hashes, the commit and the day."""
    hashes = [f"{word} {str(attrs[name])[:12]}" for name, word in HASHES.items() if known(attrs, name)]
    commit = str(known(attrs, "git_commit") or "")
    dirty = " with uncommitted changes" if commit.endswith("-dirty") else ""
    day = str(known(attrs, "created_at") or "")[:10]
    ran = f" on {day}" if day else ""
    ran += f" in a repository at commit {commit.removesuffix('-dirty')[:12]}{dirty}" if commit else ""
    begun = f"The computation was begun{ran}" if ran else ""
    return join([begun, f"Shortened SHA-256 hashes: {', '.join(hashes)}" if hashes else ""])


def join(sentences: Iterable[str]) -> str:
    """Join sentences, each with a capital and one full stop; empty ones are left out."""
    told = [each[:1].upper() + each[1:].removesuffix(".") for each in map(str.strip, sentences) if each]
    return " ".join(f"{each}." for each in told)


def tell_audit(result: xr.Dataset) -> str:
    """Tell the errors that were measured of what was filled in."""
    attrs = result.attrs
    if not attrs.get("n_audit") or "audited_p95_upper" not in attrs:
        return ""
    count = int(attrs["n_audit"])
    drawn = f"{plural(count, 'point')} drawn at random from the filled ones"
    sentence = f"As an audit, {drawn} {'was' if count == 1 else 'were'} computed"
    held, seen = [], []
    for audited, unit in (("audited", _scale(result)), ("audited_accuracy", "in accuracy")):
        bound, largest = (known(attrs, f"{audited}_{word}") for word in ("p95_upper", "max"))
        more = f" (largest seen {number(largest)})" if largest is not None and largest != bound else ""
        if bound is not None and math.isfinite(float(bound)):
            held.append(f"{number(bound)} {unit}{more}")
        elif largest is not None:
            seen.append(f"{number(largest)} {unit}")
    if held:
        bound = f"off by at most {listed(held)} on every split"
        sentence += f": with 95 % confidence, at least 95 % of the filled points are {bound}"
    elif seen:
        sentence += f": they are off by at most {listed(seen)}, and are too few to bound the others"
    return sentence


def _scale(result: xr.Dataset) -> str:
    """Say in what errors of the loss are told; statistics say so themselves."""
    if "loss" in result:
        loss = result["loss"].values
        positive = bool((loss[np.isfinite(loss)] > 0).all())
    else:
        positive = result.attrs.get("scale", "log") == "log"
    if positive:
        return "in the natural logarithm of the loss"
    return "in the loss, as a share of its range where it touches 0"


def tell_minimizer(attrs: Mapping[Any, Any]) -> str:
    """Tell the values at the given weights, and how far from a critical point they are."""
    # A standard error of 0 says only that all examples were taken, or that all of a sample agree: it is left out.
    values = read_json(attrs.get("at_minimizer")) or {}
    told = [
        f"{name} {number(value)}" + (f" (s.e. {number(error)})" if (error := values.get(f"{name}_se")) else "")
        for name, value in values.items()
        if not name.endswith("_se")
    ]
    norm, split = known(attrs, "grad_norm"), next((name.removesuffix("loss") for name in values), "")
    gradient = f"the gradient of the {split}loss has norm {number(norm)}" if norm is not None else ""
    return f"At the given weights: {', '.join([*told, *([gradient] if gradient else [])])}" if told or gradient else ""
