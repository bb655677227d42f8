"""Train ten small networks on handwritten digits, keep the best three, draw a report.

Three stages, each of which becomes read-only folders in the store:

    digits -----+-----------------------------------------+--> report
                +--> networks (10 made, the best 3 count) -+

Run it (``python docs/examples/digits.py``), or build its last stage from the shell with
``pylightnix build docs/examples/digits.py``. Either way a daemon trains several networks at a time, as many as there are
processors. Training starts from random weights, so no two runs agree; yet once three networks are in the store, they
are what every later run gets.
"""

import gzip
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pylightnix import (
    Attrs,
    Context,
    DRef,
    Registry,
    RRef,
    StorageSettings,
    autostage,
    context_deref,
    fsinit,
    instantiate,
    match_some,
    mklens,
    mknode,
    realize,
    selfref,
)
from pylightnix.events import BuildFinished, BuildLogged, Event
from pylightnix_client.starting import start_daemon

NETWORKS = 10  # how many are trained
BEST = 3  # how many of them the report is about

# The first rows train, the next rows choose the best networks, the rest is what the report is measured on.
TRAIN, CHOOSE, TEST = slice(0, 1000), slice(1000, 1400), slice(1400, None)


def read_digits(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images, shape (n, 64) with values from 0 to 1, and their labels, shape (n,)."""
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    return table[:, :-1] / 16, table[:, -1].astype(int)


def probabilities(images: np.ndarray, w: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return what the network `w` thinks, shape (n, 10), and its hidden layer, shape (n, hidden)."""
    hidden = np.tanh(images @ w["w1"] + w["b1"])
    scores = np.exp(hidden @ w["w2"] + w["b2"])
    return scores / scores.sum(axis=1, keepdims=True), hidden


# --- stage 1: the data. A node is a stage whose artifacts are known from the start.


def digits(r: Registry) -> DRef:
    config = {"origin": "UCI Optical Recognition of Handwritten Digits", "table": [selfref, "digits.csv.gz"]}
    return mknode(r, config, {"digits.csv.gz": Path(__file__).with_name("digits.csv.gz").read_bytes()}, name="digits")


# --- stage 2: the networks. An autostage is a function: its arguments are the config, and its code is part of it.


def score(S: StorageSettings, rref: RRef) -> float:
    """The key by which the matcher ranks networks: a file that training left."""
    return float(mklens(rref, S=S).accuracy.contents)


@autostage(
    name="networks",
    hidden=16,
    epochs=60,
    rate=0.5,
    weights=[selfref, "weights.npz"],  # promises: files that each output must hold in the end
    accuracy=[selfref, "accuracy.txt"],
    nouts=NETWORKS,  # the function is called so often; a daemon makes as many calls at once as it has processors
    matcher=match_some(BEST, score),
)
def networks(data: Attrs, hidden: int, epochs: int, rate: float, weights: str, accuracy: str, rindex: int) -> None:
    begin = time.perf_counter()
    # A stage of which one realization counts arrives as an object that has the items of its config, one of which
    # several count as a list of such objects. What a config promised is a path here.
    images, labels = read_digits(data.table)
    w, losses = descend(images[TRAIN], labels[TRAIN], hidden, epochs, rate)
    right = probabilities(images[CHOOSE], w)[0].argmax(axis=1) == labels[CHOOSE]
    np.savez(weights, losses=losses, **w)
    Path(accuracy).write_text(f"{right.mean():.4f}\n")
    seconds = time.perf_counter() - begin
    print(f"  network {rindex + 1:2} of {NETWORKS}: {right.mean():.1%} of the digits right, {seconds:.2f} s in process {os.getpid()}")


def descend(images: np.ndarray, labels: np.ndarray, hidden: int, epochs: int, rate: float) -> tuple[dict[str, Any], list[float]]:
    """Return weights trained by gradient descent from a random start, and the loss after each epoch."""
    random = np.random.default_rng()  # seeded by the operating system: each network is another one
    w = {
        "w1": random.normal(0, 0.2, (64, hidden)),
        "b1": np.zeros(hidden),
        "w2": random.normal(0, 0.2, (hidden, 10)),
        "b2": np.zeros(10),
    }
    wanted = np.eye(10)[labels]
    losses = []
    for _ in range(epochs):
        for batch in np.array_split(random.permutation(len(images)), 20):
            believed, layer = probabilities(images[batch], w)
            error = (believed - wanted[batch]) / len(batch)
            back = error @ w["w2"].T * (1 - layer**2)
            w["w2"] -= rate * layer.T @ error
            w["b2"] -= rate * error.sum(axis=0)
            w["w1"] -= rate * images[batch].T @ back
            w["b1"] -= rate * back.sum(axis=0)
        believed, _ = probabilities(images, w)
        losses.append(-np.log(believed[np.arange(len(labels)), labels]).mean())
    return w, losses


# --- stage 3: the report.


@autostage(name="report", picture=[selfref, "report.png"])
def report(data: Attrs, best: list[Attrs], picture: str) -> None:
    from matplotlib.figure import Figure

    images, labels = read_digits(data.table)
    images, labels = images[TEST], labels[TEST]
    trained = [np.load(network.weights) for network in best]
    vote = np.sum([probabilities(images, w)[0] for w in trained], axis=0).argmax(axis=1)

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, middle, right = figure.subfigures(1, 3)

    axes = left.subplots()
    for network, w in zip(best, trained, strict=True):
        axes.semilogy(w["losses"], label=f"{float(Path(network.accuracy).read_text()):.1%} when chosen")
    axes.set(title="The best networks", xlabel="epoch", ylabel="loss")
    axes.legend()

    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels, vote), 1)
    axes = middle.subplots()
    axes.imshow(np.sqrt(confusion), cmap="Blues")
    for row, column in np.argwhere(confusion):
        axes.text(column, row, confusion[row, column], ha="center", va="center", color="black" if row != column else "white")
    axes.set(title=f"Their vote: {(vote == labels).mean():.1%} right", xlabel="read as", ylabel="is", xticks=range(10), yticks=range(10))

    right.suptitle("Some that they misread")
    grid = right.subplots(3, 5).ravel()
    for axes, index in zip(grid, np.flatnonzero(vote != labels), strict=False):
        axes.imshow(images[index].reshape(8, 8), cmap="gray_r")
        axes.set_title(f"{labels[index]} as {vote[index]}", fontsize=9)
    for axes in grid:
        axes.set_axis_off()
    figure.savefig(picture, dpi=110)


def main(r: Registry) -> DRef:
    """The whole pipeline is named by its last stage."""
    data = digits(r)
    return report(r=r, data=data, best=networks(r=r, data=data))


# --- the rest only shows what happens. A program of yours calls `realize`, which goes to the store's daemon if there is one.


def timed_run() -> tuple[DRef, Context, int]:
    built: list[DRef] = []

    def watching(event: Event) -> None:
        if isinstance(event, BuildFinished):
            built.append(event.dref)
        elif isinstance(event, BuildLogged):  # what a stage prints in the daemon
            print(event.data.decode(), end="")

    # A daemon for this store only, which ends when nobody has needed it for five seconds.
    start_daemon()
    begin = time.perf_counter()
    result, closure, context = realize(instantiate(main), observe=watching)
    print(f"built {len(built)} of {len(closure.derivations)} stages in {time.perf_counter() - begin:.2f} s\n")
    return result, context, len(built)


if __name__ == "__main__":
    fsinit()  # make the store if it is not there: PYLIGHTNIX_ROOT, or a folder of yours

    print("First run:")
    result, context, _ = timed_run()
    [rref] = context_deref(context, result)
    made = mklens(rref, ctx=context)
    print(f"the report   {made.picture.syspath}")
    for network in context_deref(context, made.best.dref):
        lens = mklens(network)
        print(f"from         {lens.weights.syspath} ({float(lens.accuracy.contents):.1%})")

    print("\nThe same again:")
    again, context_again, built = timed_run()
    if built or (again, context_again) != (result, context):
        sys.exit("something was built twice")
    print("Nothing was built: the same report, from the same three networks.")
