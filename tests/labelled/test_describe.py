"""Methods paragraphs and BibTeX: every number is the result's own, and what a result does not tell is not told."""

import inspect
import json
import re
import tomllib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import lltoolkit as ll
from lltoolkit.errors import SchemaError
from lltoolkit.labelled import citation
from lltoolkit.labelled.citation import cite, references_of
from lltoolkit.labelled.describe import describe
from lltoolkit.labelled.references import OF_MEASURES, REFERENCES
from lltoolkit.labelled.schema import KINDS, STATUS
from lltoolkit.tensors.sharpness.registry import MEASURES

ROOT = Path(__file__).parents[2]
NAMES = ["surface", "refined", "two-level", "ensemble", "line", "hessian", "pca", "numbers", "curvature", "spectrum"]
NAMES += ["sharpness", "trajectory", "path", "history"]
PCA = {
    "kind": "pca",
    "dims": 2,
    "origin": "final",
    "center": "origin",
    "scale": "unit",
    "parameters": "all",
    "n_checkpoints": 31,
    "n_runs": 1,
    "steps": [0, 5400],
    "explained_variance": [0.7125, 0.2],
    "explained_variance_null": [0.6279, 0.1499],
}


def model(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3))


@pytest.fixture(scope="module")
def results():
    """One result of every kind: computed where that is quick, laid out by hand as other modules do for the rest."""
    rng = torch.Generator().manual_seed(0)
    data = {"train": (torch.randn(40, 2, generator=rng), torch.arange(40) % 3)}
    data["test"] = (torch.randn(30, 2, generator=rng), torch.arange(30) % 3)
    objective = ll.Objective(model(0), data)
    plane = ll.random_subspace(objective, seed=3)
    quiet = {"progress": False}
    line = ll.compute_surface(objective, ll.interpolate(model(0), model(1)), resolution=21, **quiet)
    made = {
        "surface": ll.compute_surface(
            ll.Objective(model(0), data, n_examples={"train": 20}), plane, resolution=5, **quiet
        ),
        "refined": ll.compute_surface(objective, plane, resolution=21, tolerance=0.1, **quiet),
        "two-level": ll.compute_surface(objective, plane, resolution=5, examples="two-level", **quiet),
        "ensemble": ll.compute_surface(
            objective, [ll.random_subspace(objective, dims=1, seed=s) for s in (4, 7)], resolution=5, **quiet
        ),
        "line": line,
        "hessian": ll.compute_surface(objective, ll.hessian_subspace(objective, ends="both"), resolution=3, **quiet),
        "numbers": ll.surface_statistics(line),
        "curvature": ll.compute_curvature(objective, plane, resolution=3, parameters="weights", **quiet),
        "spectrum": ll.hessian_spectrum(objective, n_probes=2, n_steps=4, **quiet),
        "sharpness": ll.compute_sharpness({"a": objective}, measures=["sam", "weight_norm", "fisher_rao"], **quiet),
    }
    common = {name: made["surface"].attrs[name] for name in ("model", "n_params", "lltoolkit_version", "torch_version")}
    made["pca"] = made["surface"].assign_attrs(subspace=json.dumps(PCA), subspace_kind="pca")
    steps = {"step": [0, 10, 20], "axis": ["alpha", "beta"]}
    made["trajectory"] = xr.Dataset(
        {
            "alpha": ("step", [2.0, 1.0, 0.0]),
            "beta": ("step", [0.0, 1.0, 0.0]),
            "residual": ("step", [0.25, 0.5, 0.0]),
            "explained_variance": ("axis", [0.7125, 0.2]),
            "explained_variance_null": ("axis", [0.6279, 0.1499]),
        },
        coords=steps,
        attrs=common
        | {"kind": "trajectory", "run": "sgd", "captured_share": 0.912, "n_checkpoints": 3, "n_skipped": 1}
        | {"subspace": json.dumps(PCA), "subspace_kind": "pca"},
    )
    made["path"] = xr.Dataset(
        {
            "theta_norm": ("step", [1.0, 2.0, 3.0]),
            "explained_variance": ("component", [0.7125, 0.2, 0.05]),
            "explained_variance_null": ("component", [0.6279, 0.1499, 0.06]),
        },
        coords={"step": [0, 10, 20]},
        attrs=common | {"kind": "statistics", "run": "sgd", "sketch": 4096},
    )
    recipe = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "data": {"name": "digits", "normalize": "none"}}
    made["history"] = xr.Dataset(
        coords={"step": [0, 10]}, attrs=common | {"kind": "history", "config": json.dumps(recipe)}
    )
    return made


def count(result, word):
    return int((result["status"].values == STATUS[word]).sum())


def test_every_kind_is_there(results):
    assert {result.attrs["kind"] for result in results.values()} == set(KINDS)
    assert set(results) == set(NAMES)


def test_a_surface_on_some_examples(results):
    text = describe(results["surface"])
    assert "loss surface of Sequential (21 parameters)" in text
    assert "over 20 of 40 train examples and all 30 test examples, drawn at random without replacement (seed 0)" in text
    assert "two random Gaussian directions (seed 3), filter-normalized" in text
    assert "5 x 5 grid points, alpha from -1 to 1 and beta from -1 to 1" in text
    assert "All 25 points were computed on all of these examples" in text
    assert results["surface"].attrs["theta_sha256"][:12] in text
    assert f"PyTorch {torch.__version__}" in text


def test_a_refined_surface_tells_what_was_filled_and_how_far_off_it_is(results):
    surface = results["refined"]
    text = describe(surface)
    assert f"Of 441 points {count(surface, 'computed'):,} were computed" in text
    assert f"{count(surface, 'interpolated'):,} were interpolated" in text
    assert f"{surface.attrs['n_audit']} points drawn at random" in text
    assert f"at most {surface.attrs['audited_p95_upper']:.4g} in the natural logarithm of the loss" in text
    assert {"wilks1941determination", "stein1999interpolation"} <= references_of(surface)


def test_an_audit_too_small_to_bound_says_so(results):
    told = {"audited_p95_upper": float("inf"), "audited_accuracy_p95_upper": float("inf"), "n_audit": 12}
    text = describe(results["refined"].assign_attrs(told))
    assert "12 points drawn at random from the filled ones were computed" in text
    assert "too few to bound the others" in text
    assert "inf" not in text


def test_a_loss_that_touches_zero_is_not_told_in_logarithms(results):
    surface = results["refined"].copy(deep=True)
    surface["loss"][0, 0, 0] = 0.0
    assert "logarithm" not in describe(surface)


def test_cells_that_are_missing_or_no_numbers_are_told(results):
    surface = results["surface"].copy(deep=True).assign_attrs(n_nan=2, n_inf=1)
    surface["status"][0, :3] = STATUS["missing"]
    text = describe(surface)
    assert "Of 25 points 22 were computed and 3 were not computed" in text
    assert "2 points gave NaN and 1 point gave an infinite loss" in text


def test_an_ensemble_tells_its_seeds(results):
    text = describe(results["ensemble"])
    assert "The loss lines of" in text
    assert "Each of 2 lines (seeds 4 and 7) passes" in text


def test_lines_through_models(results):
    assert "through two sets of weights, at alpha = 0 and at alpha = 1" in describe(results["line"])
    assert "moved along with the weights" in describe(results["line"].assign_attrs(buffers="interpolate"))


def test_eigenvectors(results):
    recipe = json.loads(results["hessian"].attrs["subspace"])
    high, low = recipe["eigenvalues"]
    assert f"the largest and the smallest eigenvalue ({high:.4g} and {low:.4g})" in describe(results["hessian"])


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ({"kind": "random", "dims": 3, "normalize": "none"}, "The volume passes .* along three .*, not rescaled"),
        ({"kind": "random", "dims": 2, "orthogonalize": 1}, "orthogonal to one another within each filter"),
        ({"kind": "random", "dims": 1, "ignore": "original_code"}, "along their own values, as in the code of Li"),
        ({"kind": "interpolation", "dims": 2}, r"three sets of weights, at \(alpha, beta\) = \(0, 0\), \(1, 0\)"),
        ({"kind": "hessian", "dims": 1, "eigenvalues": [3.0]}, r"eigenvector .* that of the largest eigenvalue \(3\)"),
        ({"kind": "hessian", "dims": 3, "ends": "both"}, "the largest, the smallest and the second largest eigenvalue"),
        ({"kind": "hessian", "dims": 2, "tol": 0.01, "converged": 0}, "did not converge to that tolerance"),
        ({"kind": "pca", "dims": 1, "parameters": "weights"}, "first principal component in the weights with two axes"),
        ({"kind": "custom", "dims": 2}, r"The plane was given by hand \(kind 'custom'\)"),
    ],
)
def test_subspaces(results, recipe, sentence):
    text = describe(results["surface"].assign_attrs(subspace=json.dumps(recipe)))
    assert re.search(sentence, text)
    assert_sound(text.replace("(0, 0), (1, 0) and (0, 1)", ""))


@pytest.mark.parametrize("name", ["pca", "trajectory"])
def test_principal_components_stand_beside_a_random_walk(results, name):
    text = describe(results[name])
    assert "first two principal components of 31 checkpoints (optimizer steps 0 to 5,400)" in text
    assert "taken about the final weights and not about their mean" in text
    assert "They explain 71.2 % and 20 % of the checkpoints' variance" in text
    assert "of a random walk with as many steps it would be 62.8 % and 15 %" in text
    assert "antognini2018pca" in references_of(results[name])


def test_without_a_random_walk_none_is_told(results):
    recipe = PCA | {"explained_variance_null": None, "n_runs": 2, "origin": "mean", "center": "mean"}
    surface = results["pca"].assign_attrs(subspace=json.dumps(recipe))
    text = describe(surface)
    assert "random walk" not in text
    assert "of 2 trainings" in text
    assert "antognini2018pca" not in references_of(surface)


def test_a_path_tells_what_it_lost(results):
    text = describe(results["trajectory"])
    assert "the training 'sgd' of Sequential" in text
    assert "3 checkpoints, from optimizer step 0 to 20; 1 checkpoint could not be used" in text
    assert "holds 91.2 % of the squared displacements" in text
    assert "the residual is at most 0.5" in text
    text = describe(results["path"])
    assert "projections of the weights to 4,096 numbers" in text
    assert "Its first two principal components, taken about the last checkpoint, explain 71.2 % and 20 %" in text


def test_a_share_just_below_one_is_not_rounded_to_all(results):
    assert "more than 99.9 %" in describe(results["trajectory"].assign_attrs(captured_share=0.99999))


def test_a_curvature_map(results):
    attrs = results["curvature"].attrs
    text = describe(results["curvature"])
    assert f"{attrs['n_variables']} variables, the weights with two axes or more" in text
    assert "at most 0.01 times the largest eigenvalue. All points met that" in text
    assert f"{attrs['n_hvp_total']:,} Hessian-vector products, {attrs['n_hvp_audit']:,} of them for the audit" in text
    missed = describe(results["curvature"].assign_attrs(n_unconverged=2, n_audit=9, n_audit_missed=3))
    assert "2 points did not meet that" in missed
    assert "9 points drawn at random were computed again" in missed
    assert "3 differ by more than the tolerance" in missed


def test_a_spectrum_and_a_table(results):
    assert "2 stochastic Lanczos quadratures from Gaussian vectors (seed 0), 4 Lanczos steps each" in describe(
        results["spectrum"]
    )
    text = describe(results["sharpness"])
    assert "The sharpness of 1 minimizer of Sequential (21 parameters)" in text
    assert "worst case in a ball (sam, lower bound, m = 128" in text
    assert "Examples: 40 train and 30 test" in text
    several = results["sharpness"].assign_attrs(n_params="75002 to 1184714")
    assert "(75,002 to 1,184,714 parameters)" in describe(several)


def test_statistics_and_history(results):
    options = json.loads(results["numbers"].attrs["statistics"])
    assert f"windows of half-width {options['window']:.4g}" in describe(results["numbers"])
    text = describe(results["history"])
    assert "Recipe: optimizer sgd, learning rate 0.1, momentum 0.9." in text
    assert "Inputs were not normalized" in text


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ("none", "Inputs were not normalized."),
        ("cifar10", "Inputs were normalized as cifar10."),
        ("mean=0.5,0.4 std=0.2,0.1", "Inputs were normalized with mean 0.5, 0.4 and standard deviation 0.2, 0.1."),
        ("unknown", ""),
    ],
)
def test_normalization(results, told, sentence):
    text = describe(results["surface"].assign_attrs(data_normalize=told))
    assert sentence in text if sentence else "normalized with" not in text and "normalized as" not in text


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_attribute_is_left_out_and_never_guessed(results, name):
    result = results[name]
    for lost in [name for name in result.attrs if name != "kind"]:
        rest = result.copy().assign_attrs()
        rest.attrs = {key: value for key, value in result.attrs.items() if key != lost}
        assert_sound(describe(rest))
        cite(rest)
    rest = result.copy()
    rest.attrs = {"kind": result.attrs["kind"]}
    assert_sound(describe(rest))
    rest = xr.Dataset(attrs=result.attrs)
    assert_sound(describe(rest))
    assert_sound(describe(xr.Dataset(attrs={"kind": result.attrs["kind"]})))


def assert_sound(text):
    """One line of whole sentences, without what Python calls nothing."""
    assert not re.search(r"\b(None|nan|inf|none [a-z]*ed)\b|[{}\[\]]|  | \.|\.\.|,\.|\( | \)|\n|\(\)", text), text
    assert text.endswith(".")
    assert all(
        sentence[:1].isupper() or sentence[:1].isdigit() for sentence in re.split(r"(?<=[a-z)])(?<!et al)\. ", text)
    ), text


@pytest.mark.parametrize("name", NAMES)
def test_a_result_from_a_file_reads_the_same(results, name, tmp_path):
    result = results[name]
    result.to_netcdf(tmp_path / "it.nc")
    again = xr.load_dataset(tmp_path / "it.nc")
    assert describe(again) == describe(result)
    assert cite(again) == cite(result)


@pytest.mark.parametrize("name", NAMES)
def test_latex_is_the_same_text_with_commands_escaped(results, name):
    plain, latex = describe(results[name]), describe(results[name], form="latex")
    assert not re.search(r"(?<!\\)[#$%&_]", latex)
    assert re.sub(r"\\([#$%&_{}])", r"\1", latex) == plain


def test_shipped_results():
    found = sorted((ROOT / "data").rglob("*.nc"))
    if not found:
        pytest.skip("the results of data/ are not part of a package")
    for path in found:
        result = xr.load_dataset(path)
        if result.attrs.get("kind") in KINDS:
            assert_sound(describe(result))
            assert_bibtex(cite(result))


@pytest.mark.parametrize("other", [xr.Dataset(), xr.Dataset(attrs={"kind": "surfice"}), 3, xr.DataArray([1.0])])
def test_what_is_no_result(other):
    for function in (describe, cite):
        with pytest.raises(SchemaError, match="not one of surface"):
            function(other)


def test_bad_options(results):
    with pytest.raises(ValueError, match="Did you mean 'latex'"):
        describe(results["surface"], form="latx")
    with pytest.raises(ValueError, match="nothing"):
        cite()


# BibTeX


def entries(text):
    """Parse BibTeX as `cite` writes it: key -> (kind, fields)."""
    found = {}
    for kind, key, body in re.findall(r"@(\w+)\{([\w:]+),\n(.*?)\n\}", text, flags=re.DOTALL):
        assert key not in found
        lines = [re.fullmatch(r"  (\w+) = \{(.+)\},", line) for line in body.split("\n")]
        assert all(lines), body
        found[key] = (kind, {line[1]: line[2] for line in lines})
    return found


def assert_bibtex(text):
    found = entries(text)
    assert len(found) == text.count("@")
    assert next(iter(found)) == "lltoolkit"
    for kind, fields in found.values():
        place = {"article": "journal", "inproceedings": "booktitle", "book": "publisher"}.get(kind)
        assert {"author", "title"} <= set(fields)
        assert place is None or fields[place]
        for value in fields.values():
            depths = np.cumsum([{"{": 1, "}": -1}.get(letter, 0) for letter in value])
            assert depths[-1] == 0
            assert (depths >= 0).all()
            assert value.isascii()
    return found


def test_all_entries():
    text = "\n\n".join(reference.bibtex(key) for key, reference in REFERENCES.items())
    found = entries(text)
    assert list(found) == list(REFERENCES)
    for key, (_, fields) in found.items():
        surname = fields["author"].partition(",")[0].lower()
        assert key.startswith(re.sub(r"\W", "", surname.replace(r"{\'e}", "e")) + fields["year"])


def test_no_entry_without_use():
    used = inspect.getsource(citation) + str(OF_MEASURES)
    assert [key for key in REFERENCES if f"{key!r}" not in used and f'"{key}"' not in used] == []


def test_every_measure_has_its_papers():
    assert set(OF_MEASURES) == set(MEASURES)
    for name, keys in OF_MEASURES.items():
        function = MEASURES[name].function
        told = inspect.getdoc(function.func if isinstance(function, partial) else function)
        for key in keys:
            reference = REFERENCES[key]
            surname = reference.authors.partition(",")[0]
            # The eigenvalue's own docstring leaves its method to that of the Lanczos process.
            assert name == "lambda_max" or re.search(rf"{surname}[^;]*\({reference.year}\)", told.replace("\n", " ")), (
                key
            )


LI = {"li2018visualizing"}
KRIGING = {"stein1999interpolation", "cohn1996neural", "wilks1941determination"}
CITED = {
    "surface": LI,
    "refined": LI | KRIGING,
    "ensemble": LI,
    "line": {"goodfellow2015qualitatively"},
    "hessian": LI | {"yao2020pyhessian", "wu2000thick"},
    "curvature": LI | {"wu2000thick"},
    "spectrum": {"ghorbani2019investigation", "ubaru2017fast"},
    "sharpness": {"foret2021sharpness", "andriushchenko2023modern", "jiang2020fantastic", "liang2019fisher"},
    "pca": LI | {"antognini2018pca"},
    "trajectory": LI | {"antognini2018pca"},
    "path": {"antognini2018pca"},
    "history": set(),
    "numbers": {
        "goodfellow2015qualitatively",
        "edelsbrunner2002topological",
        "entezari2022role",
        "frankle2020linear",
    },
}


@pytest.mark.parametrize("name", CITED)
def test_exactly_the_methods_used(results, name):
    found = assert_bibtex(cite(results[name]))
    assert set(found) - {"lltoolkit"} == CITED[name]


def test_estimated_cells_rest_on_sampling(results):
    surface = results["surface"].copy(deep=True)
    surface["status"][0, 0] = STATUS["estimated"]
    assert {"rosen1997sampling", "deville1992calibration"} <= references_of(surface)


@pytest.mark.parametrize(("hessian", "n_papers"), [("euclidean", 1), ("preconditioned", 2), ("none", 0)])
def test_the_edge_of_stability(results, hessian, n_papers):
    table = results["sharpness"].assign_attrs(stability_hessian=hessian, stability="2 / lr")
    assert len([key for key in references_of(table) if key.startswith("cohen")]) == n_papers


def test_several_results_share_their_entries(results):
    other = results["line"].assign_attrs(lltoolkit_version="0.2.0", git_commit="abc-dirty")
    found = assert_bibtex(cite(results["surface"], other, results["pca"]))
    assert set(found) == {"lltoolkit", "goodfellow2015qualitatively", *LI, "antognini2018pca"}
    note = found["lltoolkit"][1]["note"]
    assert f"versions {ll.__version__} and 0.2.0" in note
    assert "abc-dirty" in note


def test_citation_file_agrees_with_the_package():
    path = ROOT / "CITATION.cff"
    if not path.exists():
        pytest.skip("CITATION.cff is not part of a package")
    text = path.read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def told(name):
        return re.search(rf'^{name}: "?(.*?)"?$', text, flags=re.MULTILINE)[1]

    assert told("cff-version") == "1.2.0"
    assert told("version") == ll.__version__
    assert told("license") == project["license"]
    assert told("abstract") == project["description"]
    li = REFERENCES["li2018visualizing"]
    assert f"title: {li.title}" in text
    families = re.findall(r"family-names: (\w+)\n\s+given-names: (\w+)", text)
    assert " and ".join(f"{family}, {given}" for family, given in families) == li.authors
