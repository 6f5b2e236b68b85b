"""The project files agree with each other."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {"torch": "pytorch", "netCDF4": "netcdf4"}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(requirement):
    return re.match(r"[A-Za-z0-9_.-]+", requirement).group()


def test_conda_environment_asks_for_what_pyproject_asks_for(project):
    lines = (ROOT / "environment.yml").read_text().splitlines()
    conda = {
        line.strip(" -")
        for line in lines
        if line.startswith("  - ") and line.strip(" -") not in ("conda-forge", "pip", "pip:")
    }
    wanted = {
        requirement.replace(name_of(requirement), CONDA_NAMES.get(name_of(requirement), name_of(requirement)))
        for requirement in project["dependencies"]
    }
    assert conda == wanted | {f"python{project['requires-python']}"}


def test_every_dependency_is_pinned_in_constraints(project):
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {name_of(pin).lower() for pin in pins if "==" in pin}
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {name_of(requirement).lower() for requirement in asked} <= pinned


def test_every_dependency_has_its_reason(project):
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    reasons = contributing.split("## Dependencies")[1]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert not [name for name in map(name_of, asked) if f"`{name}`" not in reasons]
