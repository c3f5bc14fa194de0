"""The training program of the demo: a small network that learns, and saves while it learns.

Run by `asyncsync demo` as a process of its own. It reports on standard output, one JSON object per
line, each written before anything further happens, so that a reader can kill it at a chosen moment.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TextIO

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import numpy as np
import numpy.typing as npt

from .. import events
from ..events import Event, Moved
from ..location import Location
from ..syncing import StorageSyncer
from .demo_protocol import Committed, Plan, Reduced, Report, Saved, Sent, Stepped, Synced, Trained

__all__ = ["Model", "main"]

Array = npt.NDArray[np.float32]

CLASSES = 16
FEATURES = 64
LAYERS = (FEATURES, 1024, 1024, 1024, 1024, CLASSES)
SAMPLES = 4096
BATCH = 128
LEARNING_RATE = 0.01
MOMENTUM = 0.9


class Model:
    """A perceptron that tells clusters of points apart, trained with momentum.

    Its whole state is in files: weights and moments as arrays, the position of the random
    generator and the step as JSON. Loaded again, training continues bit by bit as if nothing
    had happened.
    """

    def __init__(self, points: Array, labels: npt.NDArray[np.int64]) -> None:
        self._points = points
        self._labels = labels
        self._random = np.random.default_rng(7)
        self.step = 0
        self.state: dict[str, Array] = {}
        for number, (inputs, outputs) in enumerate(pairwise(LAYERS)):
            scale = np.float32(np.sqrt(2 / inputs))
            weights = self._random.standard_normal((inputs, outputs), dtype=np.float32) * scale
            for name, value in (("weights", weights), ("bias", np.zeros(outputs, np.float32))):
                self.state[f"{name}_{number}"] = value
                self.state[f"moments_of_{name}_{number}"] = np.zeros_like(value)

    def train_step(self) -> float:
        """One step on one random batch; returns its loss, the mean cross-entropy in nats."""
        chosen = self._random.integers(0, len(self._points), BATCH)
        layers = self._forward(self._points[chosen])
        scores = layers[-1] - layers[-1].max(axis=1, keepdims=True)
        chances = np.exp(scores)
        chances /= chances.sum(axis=1, keepdims=True)
        hits = chances[np.arange(BATCH), self._labels[chosen]]
        chances[np.arange(BATCH), self._labels[chosen]] -= 1
        self._descend(layers, chances / np.float32(BATCH))
        self.step += 1
        return float(-np.log(hits + np.float32(1e-9)).mean())

    def _forward(self, batch: Array) -> list[Array]:
        layers = [batch]
        for number in range(len(LAYERS) - 1):
            scores = layers[-1] @ self.state[f"weights_{number}"] + self.state[f"bias_{number}"]
            last = number == len(LAYERS) - 2
            layers.append(scores if last else np.maximum(scores, 0))
        return layers

    def _descend(self, layers: list[Array], error: Array) -> None:
        for number in reversed(range(len(LAYERS) - 1)):
            inputs = layers[number]
            gradients = {"weights": inputs.T @ error, "bias": error.sum(axis=0)}
            error = (error @ self.state[f"weights_{number}"].T) * (inputs > 0)
            for name, gradient in gradients.items():
                moments = self.state[f"moments_of_{name}_{number}"]
                moments *= np.float32(MOMENTUM)
                moments += gradient
                self.state[f"{name}_{number}"] -= np.float32(LEARNING_RATE) * moments

    def save(self, directory: Path) -> None:
        """Write the whole state into a new directory."""
        directory.mkdir(parents=True)
        for name, value in self.state.items():
            np.save(directory / f"{name}.npy", value)
        progress = {"step": self.step, "random": self._random.bit_generator.state}
        (directory / "progress.json").write_text(json.dumps(progress))

    def load(self, directory: Path) -> None:
        """Become what `save` wrote."""
        for name in self.state:
            self.state[name] = np.load(directory / f"{name}.npy")
        progress = json.loads((directory / "progress.json").read_text())
        self.step = progress["step"]
        self._random.bit_generator.state = progress["random"]


def make_dataset(path: Path) -> None:
    """Write clusters of points and their numbers; the same ones every time."""
    random = np.random.default_rng(1)
    centers = random.standard_normal((CLASSES, FEATURES), dtype=np.float32)
    labels = random.integers(0, CLASSES, SAMPLES)
    noise = random.standard_normal((SAMPLES, FEATURES), dtype=np.float32)
    np.savez(path, points=centers[labels] + 2 * noise, labels=labels)


def report(message: Report) -> None:
    """Tell the parent, now: the line has left this process when this returns."""
    os.write(sys.stdout.fileno(), msgspec.json.encode(message) + b"\n")


class Saver:
    """Saves checkpoints while training goes on: at most one is under way.

    A checkpoint gets a directory of its own, so training may change its state as soon as that is
    written. Sending it is this object's concern, and a failure ends `group`.
    """

    def __init__(
        self, plan: Plan, remote: str, syncer: StorageSyncer, group: anyio.abc.TaskGroup
    ) -> None:
        self._directory = Path(plan.directory)
        self._remote = Location.parse(remote)
        self._syncer = syncer
        self._group = group
        self._slot = anyio.Semaphore(1)

    async def save(self, model: Model) -> None:
        """Return as soon as training may go on; the commit comes later."""
        begun = time.monotonic()
        await self._slot.acquire()
        waited = time.monotonic()
        directory = self._directory / "checkpoints" / f"step_{model.step:06}"
        await anyio.to_thread.run_sync(model.save, directory)
        written_s = time.monotonic() - waited
        report(Saved(step=model.step, waited_s=waited - begun, written_s=written_s))
        self._group.start_soon(self._send, directory, model.step)

    async def _send(self, directory: Path, step: int) -> None:
        await self._send_checkpoint(directory, step)
        await anyio.to_thread.run_sync(shutil.rmtree, directory)
        await self._send_trial(step)
        self._slot.release()

    async def _send_checkpoint(self, directory: Path, step: int) -> None:
        def moved(event: Event) -> None:
            if isinstance(event, Moved):
                sent, total = event.moved_bytes, event.total_bytes
                report(Sent(step=step, moved_bytes=sent, total_bytes=total))

        target = str(self._remote / "checkpoints" / directory.name)
        receipt = await self._syncer.sync_up(directory, target, step=step, observe=moved)
        sent, skipped, seconds = receipt.sent_bytes, receipt.skipped_bytes, receipt.seconds
        report(Committed(step=step, sent_bytes=sent, skipped_bytes=skipped, seconds=seconds))

    async def _send_trial(self, step: int) -> None:
        trial = self._directory / "trial"
        receipt = await self._syncer.sync_up(trial, str(self._remote / "trial"), kind="rolling")
        sent, skipped = receipt.sent_bytes, receipt.skipped_bytes
        report(Synced(step=step, sent_bytes=sent, skipped_bytes=skipped))


def prepare(plan: Plan) -> Model:
    """The model as it starts, or as the checkpoint has it; and the trial's directory."""
    trial = Path(plan.directory, "trial")
    trial.mkdir(parents=True, exist_ok=True)
    if not (trial / "dataset.npz").exists():
        make_dataset(trial / "dataset.npz")
    with np.load(trial / "dataset.npz") as dataset:
        model = Model(dataset["points"], dataset["labels"])
    if plan.resume is not None:
        model.load(Path(plan.resume))
        forget_after(model.step, trial / "losses.jsonl")
    return model


def forget_after(step: int, log: Path) -> None:
    """Take the steps that are going to be trained again out of the log."""
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))


def train_step(model: Model, log: TextIO) -> float:
    """One step, and its line in the trial's log."""
    loss = model.train_step()
    log.write(json.dumps({"step": model.step, "loss": loss}) + "\n")
    return loss


async def train(plan: Plan, model: Model, log: TextIO, saver: Saver | None) -> None:
    """Train to the end. Steps run in a thread, so that the loop is free for the syncer."""
    begun = time.monotonic()
    while model.step < plan.steps:
        loss = await anyio.to_thread.run_sync(train_step, model, log)
        report(Stepped(step=model.step, loss=loss))
        if saver is not None and model.step % plan.every == 0:
            await saver.save(model)
    report(Trained(seconds=time.monotonic() - begun))


async def train_and_save(plan: Plan, model: Model, log: TextIO, remote: str) -> None:
    """Train to the end and wait until all is durable."""

    def reduced(event: Event) -> None:
        if isinstance(event, events.Reduced):
            report(Reduced(where=event.where, reason=event.reason))

    async with (
        StorageSyncer(isolation="loop", bwlimit=plan.bwlimit, observe=reduced) as syncer,
        anyio.create_task_group() as group,
    ):
        await train(plan, model, log, Saver(plan, remote, syncer, group))


def main(plan: Plan) -> None:
    """Train as planned."""
    model = prepare(plan)
    with Path(plan.directory, "trial", "losses.jsonl").open("a", buffering=1) as log:
        if plan.remote is None:
            anyio.run(train, plan, model, log, None)
            model.save(Path(plan.directory, "final"))
        else:
            anyio.run(train_and_save, plan, model, log, plan.remote)


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1], type=Plan))
