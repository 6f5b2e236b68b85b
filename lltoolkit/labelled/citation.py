"""The BibTeX of exactly the methods that a result rests on. Torch-free."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lltoolkit.labelled.facts import counts_of, kind_of, measures_of, recipes_of
from lltoolkit.labelled.references import OF_MEASURES, REFERENCES, entry
from lltoolkit.labelled.schema import axes_of

OF_KINDS = {
    "curvature": ("li2018visualizing", "wu2000thick"),
    "spectrum": ("ghorbani2019investigation", "ubaru2017fast"),
}


def cite(*results: xr.Dataset) -> str:
    """Give the BibTeX of exactly the methods that results rest on, and of lltoolkit.

    Parameters
    ----------
    *results : xr.Dataset
        Results of any kind. What several share stands once.

    Returns
    -------
    str
        Entries divided by empty lines; lltoolkit first, then by key.

    Raises
    ------
    SchemaError
        If something is no result of lltoolkit.
    ValueError
        If there is none.

    Examples
    --------
    >>> line = xr.Dataset(attrs={"kind": "surface", "subspace_kind": "interpolation"})
    >>> print(*(text for text in cite(line).splitlines() if text.startswith("@")))
    @misc{lltoolkit, @inproceedings{goodfellow2015qualitatively,
    """
    if not results:
        raise ValueError("cite() was given nothing; give one result or more, cite(surface) for example.")
    for result in results:
        kind_of(result)
    keys = sorted({key for result in results for key in references_of(result)})
    return "\n\n".join([_software(results), *(REFERENCES[key].bibtex(key) for key in keys)]) + "\n"


def references_of(result: xr.Dataset) -> set[str]:
    """Choose the keys of `REFERENCES` that a result rests on."""
    kind = kind_of(result)
    keys = set(OF_KINDS.get(kind, ()))
    for recipe in recipes_of(result):
        keys |= _of_subspace(recipe)
    if kind == "surface" and len(axes_of(result)) > 1:
        keys.add("li2018visualizing")
    if "explained_variance_null" in result and np.isfinite(result["explained_variance_null"].values).any():
        keys.add("antognini2018pca")
    if kind in ("surface", "statistics"):
        keys |= set(_of_filling(result))
    if kind == "statistics":
        keys |= set(_of_statistics(result))
    if kind == "sharpness":
        for _, options in measures_of(result):
            keys |= set(OF_MEASURES.get(str(options.get("measure")), ()))
            keys |= {"andriushchenko2023modern"} if options.get("logit_normalized") else set()
        keys |= set(_of_stability(result.attrs))
    return keys


def _of_subspace(recipe: Mapping[str, Any]) -> set[str]:
    kind = recipe.get("kind")
    keys = {"interpolation": {"goodfellow2015qualitatively"}, "hessian": {"yao2020pyhessian", "wu2000thick"}}
    if kind == "random" and recipe.get("normalize") == "filter":
        return {"li2018visualizing"}
    if kind == "pca":
        return {"li2018visualizing"} | ({"antognini2018pca"} if recipe.get("explained_variance_null") else set())
    return keys.get(str(kind), set())


def _of_filling(result: xr.Dataset) -> Iterator[str]:
    """Name what cells were filled and judged by; the statistics of a surface carry its attributes."""
    attrs, counts = result.attrs, counts_of(result)
    with_tolerance = attrs.get("tolerance", "none") != "none"
    if counts.get("interpolated") or (not counts and with_tolerance):
        yield "stein1999interpolation"
        yield from ["cohn1996neural"] if with_tolerance else []
    if counts.get("estimated") or (not counts and attrs.get("sampling") == "two-level"):
        yield from ("rosen1997sampling", "deville1992calibration")
    if "audited_p95_upper" in attrs and attrs.get("n_audit"):
        yield "wilks1941determination"


def _of_statistics(result: xr.Dataset) -> Iterator[str]:
    if "n_minima" in result:
        yield "edelsbrunner2002topological"
    for name, key in (("barrier", "entezari2022role"), ("barrier_above_mean", "frankle2020linear")):
        if name in result and np.isfinite(result[name].values).any():
            yield key


def _of_stability(attrs: Mapping[Any, Any]) -> Iterator[str]:
    if attrs.get("stability_hessian") in ("euclidean", "preconditioned"):
        yield "cohen2021gradient"
    if attrs.get("stability_hessian") == "preconditioned":
        yield "cohen2022adaptive"


def _software(results: Sequence[xr.Dataset]) -> str:
    """Write the entry of lltoolkit: the versions that computed, and the commits of the repositories they ran in."""
    told: dict[str, list[str]] = {}
    for name in ("lltoolkit_version", "git_commit"):
        values = [str(result.attrs.get(name, "none")) for result in results]
        told[name] = [value for value in dict.fromkeys(values) if value != "none"]
    notes = ["Python package"]
    if versions := told["lltoolkit_version"]:
        notes.append(f"version{'s' * (len(versions) > 1)} {' and '.join(versions)}")
    if commits := told["git_commit"]:
        notes.append(f"run in a repository at commit{'s' * (len(commits) > 1)} {' and '.join(commits)}")
    fields = {
        "author": "{The lltoolkit developers}",
        "title": "{lltoolkit: Loss landscapes of neural networks}",
        "note": ", ".join(notes),
    }
    return entry("misc", "lltoolkit", fields)
