"""Adversarial images within a radius, made with the gradient of a float module."""

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional

from teachers.contract import InputContract

STEP = 2.5
"""Step of projected gradient descent, times radius over number of steps: the steps together can cross the
ball."""

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
    """Change every value by ``radius`` (of 255) in the direction in which the loss rises."""
    pixels = images.float()
    return _to_bytes(pixels + radius * _gradient_sign(module, contract, pixels, labels))


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
    """Climb the loss without changing any value by more than ``radius`` (of 255).

    The result is rounded to bytes, since shipped files take bytes. Rounding does not leave the ball, since
    the radius is a whole number.
    """
    pixels, generator = images.float(), torch.Generator().manual_seed(seed)
    adversarial = pixels + radius * (2 * torch.rand(pixels.shape, generator=generator) - 1)
    for _ in range(steps):
        direction = _gradient_sign(module, contract, adversarial.clamp(0, 255), labels)
        adversarial = adversarial + STEP * radius / steps * direction
        adversarial = pixels + (adversarial - pixels).clamp(-radius, radius)
    return _to_bytes(adversarial)


def predict(
    module: nn.Module, contract: InputContract, images: UInt8[Tensor, "batch side side 3"]
) -> Int64[Tensor, " batch"]:
    """Return the class that the module predicts for each image."""
    with torch.no_grad():
        return module(_normalise(contract, images.float())).argmax(1)


def _gradient_sign(
    module: nn.Module,
    contract: InputContract,
    pixels: Float[Tensor, "batch side side 3"],
    labels: Int64[Tensor, " batch"],
) -> Float[Tensor, "batch side side 3"]:
    """Sign of the cross entropy's gradient with respect to the pixels."""
    pixels = pixels.detach().requires_grad_()
    loss = functional.cross_entropy(module(_normalise(contract, pixels)), labels, reduction="sum")
    return torch.autograd.grad(loss, pixels)[0].sign()


def _normalise(
    contract: InputContract, pixels: Float[Tensor, "batch side side 3"]
) -> Float[Tensor, "batch 3 side side"]:
    """Normalise as ``InputContract.normalise`` does, but with a gradient."""
    mean, std = torch.tensor(contract.mean), torch.tensor(contract.std)
    return ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)


def _to_bytes(pixels: Float[Tensor, "batch side side 3"]) -> UInt8[Tensor, "batch side side 3"]:
    return pixels.round().clamp(0, 255).to(torch.uint8)
