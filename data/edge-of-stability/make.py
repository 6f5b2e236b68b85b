"""Show the edge of stability: full-batch gradient descent on digits, its sharpness over the steps beside 2/lr.

``python data/edge-of-stability/make.py`` trains two networks from the same weights, measures the largest eigenvalue of
the Hessian at every 50th step and writes ``lr-<rate>.sharpness.nc`` beside this file: about 2 minutes on one core.

A tanh network and the squared error on one-hot targets, as in the first figures of Cohen et al. (2021): under
cross-entropy the curvature falls again once every example is right, so that the sharpness leaves the edge soon after it
came there. Momentum, weight decay and minibatches are left out, since 2/lr is a statement about none of them.

References
----------
Cohen et al. (2021), Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

import lltoolkit as ll

RATES = (0.5, 0.75)
N_STEPS = 3000
EVERY = 50  # steps between checkpoints
UNITS = 64


def digits() -> dict[str, tuple[Tensor, Tensor]]:
    """Load the digits with one-hot targets."""
    return {split: (x, functional.one_hot(y, 10).float()) for split, (x, y) in ll.zoo.load_data("digits").items()}


def network(seed: int) -> nn.Sequential:
    """Build the network: two hidden layers of tanh, smooth everywhere, with torch's own initialization."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(64, UNITS), nn.Tanh()),
            *(nn.Linear(UNITS, UNITS), nn.Tanh()),
            nn.Linear(UNITS, 10),
        )


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Give 1 for each example whose largest output is at its class, else 0."""
    return (output.argmax(dim=1) == target.argmax(dim=1)).double()


def train(rate: float, n_steps: int, folder: Path, seed: int) -> ll.zoo.Run:
    """Descend along the gradient over all examples; each step is an epoch."""
    model = network(seed)
    x, y = digits()["train"]
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with ll.Recorder(folder, every=EVERY) as recorder:
        recorder.start(model)
        for step in tqdm(range(1, n_steps + 1), desc=f"lr={rate:g}"):
            loss = functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.step(model, epoch=step, learning_rate=rate, loss=loss)
    run = ll.zoo.open_run(folder, model=model)
    # What zoo.train would have put on record of itself: the threshold follows from it.
    run.config |= {"optimizer": "sgd", "lr": rate, "momentum": 0.0, "weight_decay": 0.0, "batch_size": len(x)}
    return run


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path(__file__).parent,
    n_steps: Annotated[int, typer.Option(help="Steps of each training.")] = N_STEPS,
    seed: Annotated[int, typer.Option(help="Of the first weights.")] = 0,
) -> None:
    """Train, measure and write both results."""
    torch.set_num_threads(1)
    for rate in RATES:
        with tempfile.TemporaryDirectory() as folder:
            run = train(rate, n_steps, Path(folder) / f"lr-{rate:g}", seed)
            objective = ll.Objective(run.model, digits(), loss="mse", metrics={"accuracy": accuracy}, device="cpu")
            table = ll.compute_sharpness(run, objective=objective, measures={"lambda_max": {"tol": 1e-3}})
        # The values of the single test examples are for rankings of models, and most of the file.
        ll.save_result(table.drop_dims("example", errors="ignore"), out / f"lr-{rate:g}.sharpness.nc")
        late = table.isel(step=slice(len(table["step"]) // 2, None))
        ratio = late["value"].sel(measure="lambda_max") / late["stability_threshold"]
        typer.echo(
            f"lr={rate:g}: lambda_max / (2/lr) over the second half of the steps: median {float(ratio.median()):.3f}, "
            f"from {float(ratio.min()):.3f} to {float(ratio.max()):.3f}"
        )


if __name__ == "__main__":
    typer.run(main)
