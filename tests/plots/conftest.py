import matplotlib
import pytest

from tests.plots.surfaces import make_surface

matplotlib.use("agg")


@pytest.fixture
def surface():
    return make_surface()


@pytest.fixture
def rugged():
    return make_surface(rugged=1.2)


@pytest.fixture
def ax():
    from matplotlib.figure import Figure

    return Figure(layout="constrained").subplots()
