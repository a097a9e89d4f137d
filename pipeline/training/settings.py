"""Settings of the training loop and of the device that it runs on."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.settings import BatchSize, Fraction, ImageSize, Settings


class ComputeSettings(Settings):
    """The devices on which networks are trained. Other devices, processes or threads rerun no stage."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Kind of device, as Lightning Fabric names it."""
    devices: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of GPUs per machine, or on a CPU of processes, that train one network together, each on its
    share of every batch. `auto` takes all GPUs, and one process on a CPU. A launcher (torchrun, SLURM) that
    has started several processes takes precedence; see docs/howto/ranks.md."""
    nodes: Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of machines. On each of them, the same command is started with the variables `MASTER_ADDR`,
    `MASTER_PORT` and `NODE_RANK`, unless a launcher does that."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Number of CPU threads used for training per machine, divided among its processes; 0 takes one per
    physical core."""
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    """Greatest number of processes that render images, at low priority, for each process that trains. Where
    fewer cores can be used, there are fewer."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """Arithmetic, as Lightning Fabric names it. `auto` trains in bf16 where a short trial on the machine
    that trains shows it clearly faster, and in fp32 elsewhere; `32-true` trains in fp32 on every machine.
    Quantisation-aware training always uses 32 bits. This is the only key of `compute` that changes
    results."""
    views: Literal["auto", "device", "workers"] = "auto"
    """What renders views, with the same pixels. `auto`: a GPU that holds the decoded images in 40 % of its
    free memory, else processes. `device`: also a CPU with that much memory, in the process that trains."""


class Phase(Settings):
    """One part of a training at one image size."""

    share: Annotated[float, Field(gt=0, le=1)]
    """Share of all optimiser steps. The shares of all phases add up to 1."""
    size: ImageSize | None = None
    """Image height and width in pixels; null takes the input size of the network."""
    rate: Annotated[float, Field(ge=0.0001, le=1)] = 1.0
    """Learning rate at the start of the phase, relative to the peak. After a change of image size the network
    needs some learning rate to adapt."""


class TrainingSettings(Settings):
    """How a network is trained: the same for the teacher, distillation and both kinds of fine-tuning."""

    epochs: Annotated[float, Field(ge=0.0001, le=100_000)]
    """Number of passes over the images. A fraction ends within an epoch."""
    images: Literal["all", "verified"] = "all"
    """Images of the training split that are used; `verified` are those of `data.verified`."""
    phases: tuple[Phase, ...] = ()
    """Phases of progressive resolution, in order; an empty list trains at the input size of the network."""
    batch_size: BatchSize = 64
    """Number of images per optimiser step."""
    optimizer: Literal["adamw", "rmsprop", "sgd"] = "adamw"
    """Update rule from `torch.optim`. `sgd` uses Nesterov momentum 0.9; `rmsprop` uses the settings of
    TF-slim."""
    learning_rate: Annotated[float, Field(ge=1e-8, le=100)]
    """Peak learning rate: a linear warm-up leads to it, and a cosine per phase leads down to zero."""
    warmup: Fraction = 0.05
    """Share of the steps during which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.05
    """Weight decay, which never applies to biases, batch norm and depthwise filters. It is decoupled in
    `adamw`; `sgd` and `rmsprop` add it to the gradient and need much smaller values (MobileNetV1 was
    published with 0.00004)."""
    clip: Annotated[float, Field(ge=0, le=1_000_000)] = 1.0
    """Maximum norm of the gradient; 0 disables clipping."""
    ema: Annotated[float, Field(ge=0, le=0.99999)] = 0.0
    """Decay per step of the exponential moving average of the weights, which replaces the weights at the end;
    0 keeps the last weights."""
