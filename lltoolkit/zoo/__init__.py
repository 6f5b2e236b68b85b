"""Data sets, networks and a training loop: what a study needs before its first surface."""

# Not lazy: the module `train` would otherwise stand in the place of the function, depending on who was imported first.
# torchvision, the heavy part, is loaded on first use (zoo/shim.py).
from lltoolkit.zoo.data import LoadedData, load_data
from lltoolkit.zoo.models import MODELS, build_model, load_weights, model_names
from lltoolkit.zoo.recorder import Recorder
from lltoolkit.zoo.runs import Run, open_run
from lltoolkit.zoo.train import train

__all__ = [
    "MODELS",
    "LoadedData",
    "Recorder",
    "Run",
    "build_model",
    "load_data",
    "load_weights",
    "model_names",
    "open_run",
    "train",
]
