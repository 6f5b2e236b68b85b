"""The README's code runs as printed."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, fast, cluster, sharp, path, paper = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names = {}
    exec(first, names)
    assert names["surface"].sizes == {"split": 2, "alpha": 11, "beta": 11}
    assert {path.name for path in tmp_path.iterdir()} == {"mine.surface.nc", "mine.png"}
    assert "gradient norm at the minimizer" in capsys.readouterr().out
    few = dict(names)  # on 200 examples, as the first block has them
    exec(sharp, few)
    assert few["table"]["value"].notnull().all()
    assert "roughness" in capsys.readouterr().out
    exec(fast, names)
    assert names["surface"].attrs["tolerance_met"] == 1
    assert 0 <= float(capsys.readouterr().out) <= 0.05
    exec(path, names)
    assert names["path"].sizes["step"] == 4
    assert (tmp_path / "path.gif").stat().st_size > 10_000
    exec(paper, names)
    assert {"figure.pdf", "figure.csv"} <= {file.name for file in tmp_path.iterdir()}
    assert "principal components" in capsys.readouterr().out
    compile(cluster, "README.md", "exec")  # there is no SLURM here; tests/test_compute_fast.py has a LocalCluster


def test_the_files_that_it_names_exist():
    named = re.findall(r"\]\(((?:docs|notebooks)/[^)]+)\)", README)
    assert named
    assert not [name for name in named if not (Path(__file__).parent.parent / name).exists()]
