"""Adversarial images within a radius, found with the gradient of a float module."""

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional

from teachers.contract import InputContract

STEP = 2.5
"""Of projected gradient descent: times the radius over the number of steps, so that it can cross the ball."""

DESCRIPTIONS = {
    "FGSM": "fast gradient sign method: one step of the whole radius (Goodfellow et al. 2015, "
    "arXiv:1412.6572)",
    "PGD": "projected gradient descent from one random start in the ball, {steps} steps of 2.5 x radius / "
    "steps (Madry et al. 2018, arXiv:1706.06083)",
}


def fgsm(
    module: nn.Module,
    contract: InputContract,
    images: UInt8[Tensor, "batch side side 3"],
    labels: Int64[Tensor, " batch"],
    radius: int,
) -> UInt8[Tensor, "batch side side 3"]:
    """Move every value by ``radius`` (of 255) to where the loss rises."""
    pixels = images.float()
    return _bytes(pixels + radius * _rise(module, contract, pixels, labels))


def pgd(
    module: nn.Module,
    contract: InputContract,
    images: UInt8[Tensor, "batch side side 3"],
    labels: Int64[Tensor, " batch"],
    radius: int,
    *,
    steps: int,
    seed: int,
) -> UInt8[Tensor, "batch side side 3"]:
    """Climb the loss without leaving the ball of ``radius`` (of 255) in the greatest norm.

    The result is rounded to bytes, which shipped files take, and stays in the ball since the radius is whole.
    """
    pixels, random = images.float(), torch.Generator().manual_seed(seed)
    moved = pixels + radius * (2 * torch.rand(pixels.shape, generator=random) - 1)
    for _ in range(steps):
        moved = moved + STEP * radius / steps * _rise(module, contract, moved.clamp(0, 255), labels)
        moved = pixels + (moved - pixels).clamp(-radius, radius)
    return _bytes(moved)


def answers(
    module: nn.Module, contract: InputContract, images: UInt8[Tensor, "batch side side 3"]
) -> Int64[Tensor, " batch"]:
    """The module's classes."""
    with torch.no_grad():
        return module(_normalised(contract, images.float())).argmax(1)


def _rise(
    module: nn.Module,
    contract: InputContract,
    pixels: Float[Tensor, "batch side side 3"],
    labels: Int64[Tensor, " batch"],
) -> Float[Tensor, "batch side side 3"]:
    """The sign of the loss's gradient."""
    pixels = pixels.detach().requires_grad_()
    loss = functional.cross_entropy(module(_normalised(contract, pixels)), labels, reduction="sum")
    return torch.autograd.grad(loss, pixels)[0].sign()


def _normalised(
    contract: InputContract, pixels: Float[Tensor, "batch side side 3"]
) -> Float[Tensor, "batch 3 side side"]:
    """``InputContract.normalise`` with a gradient."""
    mean, std = torch.tensor(contract.mean), torch.tensor(contract.std)
    return ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)


def _bytes(pixels: Float[Tensor, "batch side side 3"]) -> UInt8[Tensor, "batch side side 3"]:
    return pixels.round().clamp(0, 255).to(torch.uint8)
