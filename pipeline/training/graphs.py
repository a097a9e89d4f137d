"""CUDA graphs: all kernels of a training step are launched at once, instead of one by one from Python."""

import random
import statistics
import sys
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.batches import Batch

UNTIMED, TIMED = 3, 5
"""Numbers of steps of a trial: before it, and timed of each kind."""
TrainingStep = Callable[[Batch], Tensor]
"""Function that trains on a batch, and returns its loss, a scalar without gradient."""
SYNCHRONISES = "synchronizing CUDA operation"
"""Part of PyTorch's warning of an operation that waits for the device."""


def capture(
    function: Callable[[], Tensor | None], stream: torch.cuda.Stream
) -> tuple[torch.cuda.CUDAGraph, Tensor | None]:
    """A CUDA graph of what a function does on the device, and its result, which every replay overwrites.

    The function must have run on the stream before.

    Raises:
        RuntimeError: it does what a graph cannot hold, such as waiting for the device.
    """
    graph = torch.cuda.CUDAGraph()
    # Only calls of this thread count: the loader's thread copies batches to pinned memory meanwhile.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        result = function()
    return graph, result


def replayable(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The function as a CUDA graph; itself on other devices, and where a graph cannot hold it."""
    if device.type != "cuda":
        return function
    stream, here = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        for _ in range(UNTIMED):
            function()
    here.wait_stream(stream)
    try:
        graph, _ = capture(function, stream)
    except RuntimeError:
        return function
    return graph.replay


class Replayed:
    """A training step on a CUDA device, replayed as a CUDA graph where it can be and where that is faster.

    The trial takes place within the training, and each of its steps counts: for batches of a new form, some
    steps run as they are, then the step is captured, and from then on replayed. The faster of the two stays.
    A graph launches the same kernels, so the results are the same either way, and nothing is recorded.

    A graph repeats on the device what the captured step did there, and nothing else. A step that waits for
    the device, draws random numbers on the host, exchanges tensors of the network or counts in Python is
    therefore never captured, and neither is one with a live teacher, which may run elsewhere.
    """

    def __init__(self, module: nn.Module, device: torch.device, name: str) -> None:
        """Prepare for the training ``name`` of a network on a CUDA device."""
        self.module, self.device, self.name = module, device, name
        self.graph: torch.cuda.CUDAGraph | None = None
        """The graph that is replayed at present; None if the step runs as it is."""
        self._stream = torch.cuda.Stream(device)
        self._form: Hashable = None
        self._number, self._plain, self._reported = 0, False, False
        self._times: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._batch: Batch
        self._loss: Tensor

    def __call__(self, step: TrainingStep, batch: Batch, variant: Hashable) -> Tensor:
        """Train on a batch on the device; returns its loss.

        Args:
            step: the same step in every call, which keeps its tensors: each call changes those that the one
                before it changed. It is not stored here, since its owner stores this object.
            batch: see ``Batch``.
            variant: what else the kernels depend on.
        """
        form = variant, tuple((tensor.shape, tensor.dtype) for tensor in _tensors(batch))
        if form != self._form:
            self._begin(batch)
            self._form = form
        if self._plain:
            return step(batch)
        if self._number == UNTIMED + TIMED:
            self._capture(step)
        began = self._mark()
        for own, given in zip(_tensors(self._batch), _tensors(batch), strict=True):
            own.copy_(given, non_blocking=True)
        if self.graph is None:
            loss = self._run(step)
        else:
            self.graph.replay()
            loss = self._loss.clone()  # the next replay writes to the same place
        if UNTIMED <= self._number < UNTIMED + 2 * TIMED:
            self._times.append((began, self._mark()))
        self._number += 1
        if self._number == UNTIMED + 2 * TIMED:
            self._decide()
        return loss

    def _begin(self, batch: Batch) -> None:
        torch.cuda.synchronize(self.device)  # the graph that is dropped may still run
        self.graph, self._number, self._times = None, 0, []
        self._plain = bool(batch.for_teachers)
        answers = None if batch.answers is None else torch.empty_like(batch.answers)
        self._batch = Batch(torch.empty_like(batch.images), torch.empty_like(batch.labels), answers)

    def _run(self, step: TrainingStep) -> Tensor:
        """The step as it is, on the stream on which it will be captured."""
        here = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            loss = self._examine(step) if self._number == UNTIMED - 1 else step(self._batch)
        here.wait_stream(self._stream)
        loss.record_stream(here)
        return loss

    def _examine(self, step: TrainingStep) -> Tensor:
        """Run the step, and give the graph up if it would miss something."""
        state, draws = host_state(self.module), random_state()
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                loss = step(self._batch)
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        if any(SYNCHRONISES in str(warning.message) for warning in caught):
            self._give_up("they wait for the device")
        elif draws != random_state():
            self._give_up("they draw random numbers on the host")
        elif state != host_state(self.module):
            self._give_up("the network exchanges its tensors, or counts in Python")
        return loss

    def _capture(self, step: TrainingStep) -> None:
        try:
            self.graph, loss = capture(lambda: step(self._batch), self._stream)
        except RuntimeError as error:
            self.module.zero_grad()  # gradients of a capture have no values
            self._give_up(str(error).partition("\n")[0])
        else:
            assert loss is not None
            self._loss = loss

    def _give_up(self, reason: str) -> None:
        self._plain = True
        if not self._reported:
            print(f"{self.name}: the kernels of steps are launched one by one: {reason}", file=sys.stderr)
            self._reported = True

    def _decide(self) -> None:
        """Keep the graph if it is faster."""
        self._times[-1][1].synchronize()
        times = [began.elapsed_time(ended) for began, ended in self._times]
        if statistics.median(times[TIMED:]) > statistics.median(times[:TIMED]):
            self.graph, self._plain = None, True

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


def _tensors(batch: Batch) -> list[Tensor]:
    return [part for part in (batch.images, batch.labels, batch.answers) if part is not None]


def host_state(module: nn.Module) -> list[Any]:
    """What a step can change on the host: where the tensors of a network are, and its numbers in Python."""
    tensors = [*module.parameters(), *module.buffers()]
    numbers = [
        (name, value)
        for part in module.modules()
        for name, value in vars(part).items()
        if isinstance(value, bool | int | float | str)
    ]
    return [[tensor.data_ptr() for tensor in tensors], numbers]


def random_state() -> list[Any]:
    """The states of the generators of random numbers on the host."""
    legacy: Any = np.random.get_state()
    name, keys, *rest = legacy
    return [random.getstate(), name, keys.tobytes(), rest, torch.get_rng_state().tolist()]
