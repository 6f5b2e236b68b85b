"""The house stands: imports only go down, and results open and draw without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lltoolkit

PACKAGE = Path(lltoolkit.__file__).parent
# Lowest first. A module may import from lower floors and from modules above it on its own line.
FLOORS = [
    ["lltoolkit.errors", "lltoolkit.files", "lltoolkit"],
    [
        "lltoolkit.tensors",
        "lltoolkit.tensors.seeds",
        "lltoolkit.tensors.machine",
        "lltoolkit.tensors.params",
        "lltoolkit.tensors.weight_files",
        "lltoolkit.tensors.restore",
        "lltoolkit.tensors.sketch",
        "lltoolkit.tensors.checkpoints",
        "lltoolkit.tensors.foreign",
        "lltoolkit.tensors.gram",
        "lltoolkit.tensors.random_walk",
        "lltoolkit.tensors.projection",
        "lltoolkit.tensors.subspace",
        "lltoolkit.tensors.pca",
        "lltoolkit.tensors.examples",
        "lltoolkit.tensors.measures",
        "lltoolkit.tensors.network",
        "lltoolkit.tensors.objective",
        "lltoolkit.tensors.differentiable",
        "lltoolkit.tensors.hessian",
        "lltoolkit.tensors.lanczos",
        "lltoolkit.tensors.derivative_check",
        "lltoolkit.tensors.directions",
        "lltoolkit.tensors.stability",
        "lltoolkit.tensors.sharpness",
        "lltoolkit.tensors.sharpness.measure",
        "lltoolkit.tensors.sharpness.gradients",
        "lltoolkit.tensors.sharpness.ascent",
        "lltoolkit.tensors.sharpness.average",
        "lltoolkit.tensors.sharpness.controls",
        "lltoolkit.tensors.sharpness.curvature",
        "lltoolkit.tensors.sharpness.flatness",
        "lltoolkit.tensors.sharpness.volume",
        "lltoolkit.tensors.sharpness.worst",
        "lltoolkit.tensors.sharpness.registry",
        "lltoolkit.tensors.graphs",
        "lltoolkit.tensors.rewriting",
        "lltoolkit.tensors.folding",
        "lltoolkit.tensors.stem",
        "lltoolkit.tensors.engines",
        "lltoolkit.tensors.evaluate",
        "lltoolkit.tensors.curvature",
        "lltoolkit.tensors.shared",
    ],
    [
        "lltoolkit.labelled",
        "lltoolkit.labelled.schema",
        "lltoolkit.labelled.provenance",
        "lltoolkit.labelled.sharpness",
        "lltoolkit.labelled.grid",
        "lltoolkit.labelled.surface",
        "lltoolkit.labelled.streams",
        "lltoolkit.labelled.bootstrap",
        "lltoolkit.labelled.modelset",
        "lltoolkit.labelled.correlation",
        "lltoolkit.labelled.spectrum",
        "lltoolkit.labelled.sampling",
        "lltoolkit.labelled.plan",
        "lltoolkit.labelled.lattice",
        "lltoolkit.labelled.interpolate",
        "lltoolkit.labelled.audit",
        "lltoolkit.labelled.refine",
        "lltoolkit.labelled.twolevel",
        "lltoolkit.labelled.curvature",
        "lltoolkit.labelled.cells",
        "lltoolkit.labelled.terrain",
        "lltoolkit.labelled.persistence",
        "lltoolkit.labelled.statistics",
        "lltoolkit.labelled.trajectory",
        "lltoolkit.labelled.facts",
        "lltoolkit.labelled.phrases",
        "lltoolkit.labelled.where",
        "lltoolkit.labelled.references",
        "lltoolkit.labelled.citation",
        "lltoolkit.labelled.describe",
    ],
    ["lltoolkit.store", "lltoolkit.journal"],
    [
        "lltoolkit.zoo.shim",
        "lltoolkit.zoo.data",
        "lltoolkit.zoo.models",
        "lltoolkit.zoo.runs",
        "lltoolkit.zoo.snapshot",
        "lltoolkit.zoo.writer",
        "lltoolkit.zoo.resume",
        "lltoolkit.zoo.recording",
        "lltoolkit.zoo.recorder",
        "lltoolkit.zoo.recipe",
        "lltoolkit.zoo.prepare",
        "lltoolkit.zoo.train",
        "lltoolkit.zoo",
    ],
    [
        "lltoolkit.workers",
        "lltoolkit.cluster",
        "lltoolkit.pools",
        "lltoolkit.identity",
        "lltoolkit.keeping",
        "lltoolkit.execute",
        "lltoolkit.compute",
        "lltoolkit.curvature",
        "lltoolkit.spectrum",
        "lltoolkit.columns",
        "lltoolkit.minimizers",
        "lltoolkit.table_identity",
        "lltoolkit.sharpness",
        "lltoolkit.checkpoint_reader",
        "lltoolkit.trajectory",
        "lltoolkit.motion",
    ],
    [
        "lltoolkit.plots.style",
        "lltoolkit.plots.field",
        "lltoolkit.plots.relief",
        "lltoolkit.plots.scale",
        "lltoolkit.plots.cells",
        "lltoolkit.plots.series",
        "lltoolkit.plots.camera",
        "lltoolkit.plots.paths",
        "lltoolkit.plots.frame",
        "lltoolkit.plots.ticks",
        "lltoolkit.plots.themes",
        "lltoolkit.plots.tracks",
        "lltoolkit.plots.lettering",
        "lltoolkit.plots.stage",
        "lltoolkit.plots.composite",
        "lltoolkit.plots.page",
        "lltoolkit.plots.renderthread",
        "lltoolkit.plots.scene",
        "lltoolkit.plots.film",
        "lltoolkit.plots.flight",
        "lltoolkit.plots.window",
        "lltoolkit.plots.volume",
        "lltoolkit.plots.contour",
        "lltoolkit.plots.grid",
        "lltoolkit.plots.lines",
        "lltoolkit.plots.path_loss",
        "lltoolkit.plots.path_marks",
        "lltoolkit.plots.trajectory",
        "lltoolkit.plots.path_statistics",
        "lltoolkit.plots.animation",
        "lltoolkit.plots.training",
        "lltoolkit.plots.sharpness",
        "lltoolkit.plots.spectrum",
        "lltoolkit.plots.weights",
        "lltoolkit.plots.surface3d",
        "lltoolkit.plots.saving",
        "lltoolkit.plots",
        "lltoolkit.export",
        "lltoolkit.render",
    ],
    [
        "lltoolkit.integrations",
        "lltoolkit.integrations.follower",
        "lltoolkit.integrations.lightning",
        "lltoolkit.integrations.huggingface",
    ],
    [
        "lltoolkit.demo",
        "lltoolkit.options",
        "lltoolkit.commands",
        "lltoolkit.commands.compute",
        "lltoolkit.commands.trajectory",
        "lltoolkit.commands.draw",
        "lltoolkit.commands.inspect",
        "lltoolkit.cli",
    ],
]
POSITION = {module: (floor, place) for floor, modules in enumerate(FLOORS) for place, module in enumerate(modules)}
TORCH_FREE = ["lltoolkit.errors", "lltoolkit.files", "lltoolkit.labelled.schema", "lltoolkit.store"]
TORCH_FREE += ["lltoolkit.labelled.grid", "lltoolkit.labelled.surface", "lltoolkit.plots", "lltoolkit.render"]
TORCH_FREE += ["lltoolkit.labelled.correlation", "lltoolkit.labelled.statistics", "lltoolkit.labelled.sharpness"]
TORCH_FREE += ["lltoolkit.labelled.curvature", "lltoolkit.labelled.spectrum", "lltoolkit.labelled.trajectory"]
TORCH_FREE += ["lltoolkit.labelled.describe", "lltoolkit.labelled.citation", "lltoolkit.plots.saving"]

# A finder that refuses, and not sys.modules["torch"] = None: scipy.stats looks for torch there, and takes None for it.
NO_TORCH = (
    "import sys; "
    "find = lambda name, *_: (_ for _ in ()).throw(ImportError(name)) if name.split('.')[0] == 'torch' else None; "
    "sys.meta_path.insert(0, type('NoTorch', (), {'find_spec': staticmethod(find)}))"
)


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(path):
    """Names of lltoolkit modules that a file imports, also inside functions; type hints aside."""
    tree = ast.parse(path.read_text())
    hints = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in hints:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("lltoolkit"))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lltoolkit"):
            yield from (
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in POSITION else node.module
                for alias in node.names
            )


def test_every_module_has_its_place():
    assert {module for module, _ in modules()} == set(POSITION)


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_only_go_down(module, path):
    upward = [name for name in imported(path) if POSITION[name] >= POSITION[module]]
    assert not upward, f"{module} imports {upward}, which stand above it or are itself"


@pytest.mark.parametrize("module", TORCH_FREE)
def test_no_torch_needed(module):
    subprocess.run(
        [sys.executable, "-c", f"{NO_TORCH}; import {module}; assert 'torch' not in sys.modules"], check=True
    )


def test_import_is_light():
    heavy = ["torch", "matplotlib", "pyvista", "xarray", "numpy", "sklearn"]
    code = f"import sys, lltoolkit; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"
