"""The demo in its smallest form."""

import pytest

import lltoolkit as ll
from lltoolkit.demo import Recipe, run_demo

TINY = Recipe(model="resnet8", epochs=1, lr=0.05, batch_size=64, resolution=3, n_examples=10)


def test_demo_makes_what_it_says_and_goes_on_after_an_interrupt(tmp_path, monkeypatch):
    whole = run_demo(tmp_path / "whole", TINY, progress=False)
    names = {path.relative_to(tmp_path / "whole").as_posix() for path in whole.paths}
    assert names == {
        "with-shortcuts",
        "with-shortcuts.surface.nc",
        "without-shortcuts",
        "without-shortcuts.surface.nc",
        "contours.png",
        "contours.pdf",
        "surfaces.png",
    }
    assert all(path.exists() for path in whole.paths)

    compute = ll.compute_surface

    def interrupted(objective, *args, **options):
        if "none" in objective.model_name:  # Ctrl-C when the second surface is about to begin
            raise KeyboardInterrupt
        return compute(objective, *args, **options)

    monkeypatch.setattr(ll, "compute_surface", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path / "twice", TINY, progress=False)
    monkeypatch.undo()
    kept = (tmp_path / "twice" / "with-shortcuts.surface.nc").stat().st_mtime_ns
    again = run_demo(tmp_path / "twice", TINY, progress=False)
    assert again.test_accuracy == whole.test_accuracy
    assert (tmp_path / "twice" / "with-shortcuts.surface.nc").stat().st_mtime_ns == kept
    for name in ("with-shortcuts", "without-shortcuts"):
        first, second = (ll.open_result(tmp_path / run / f"{name}.surface.nc") for run in ("whole", "twice"))
        assert first.equals(second)
