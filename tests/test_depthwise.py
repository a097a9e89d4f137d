"""The fast gradients of depthwise convolutions."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.training.cpu_operators import FastOperators

ROOT = Path(__file__).parents[1]
GEOMETRIES = [
    (height, width, kernel, stride, padding)
    for height, width, kernel, stride, padding in itertools.product(
        (1, 2, 4), (1, 2, 4), (3, 5), (1, 2), (1, 2)
    )
    if min(height, width) + 2 * padding >= kernel > min(height, width)
]


def gradients(convolution: nn.Module, image: Tensor) -> tuple[Tensor, list[Tensor]]:
    output = convolution(image)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(output.shape, generator=generator, dtype=output.dtype)
    return output, list(torch.autograd.grad(output, [image, *convolution.parameters()], direction))


def is_ours(output: Tensor) -> bool:
    return "Depthwise" in type(output.grad_fn).__name__


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("height", "width", "kernel", "stride", "padding"), GEOMETRIES)
def test_the_gradients_are_pytorchs(
    height: int, width: int, kernel: int, stride: int, padding: int, bias: bool
) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 6, kernel, stride, padding, groups=6, bias=bias).double()
    image = torch.randn(3, 6, height, width, dtype=torch.double, requires_grad=True)
    expected_output, expected = gradients(convolution, image)
    with FastOperators():
        output, actual = gradients(convolution, image)
    assert is_ours(output)
    torch.testing.assert_close(output, expected_output, rtol=0, atol=0)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


STEM = """
import torch
from torch import nn
from pipeline.training.cpu_operators import FastOperators
torch.set_num_threads(1)
convolution = nn.Conv2d({channels}, 48, 1, 2, bias=False).to(memory_format=torch.{layout})
for _ in range(20):
    image = torch.rand(4, {channels}, {size}, {size}).to(memory_format=torch.channels_last)
    with FastOperators():
        output = convolution(image)
    convolution.zero_grad()
    direction = torch.rand_like(output)
    output.backward(direction)
expected = torch.einsum("bohw,bchw->oc", direction, image[:, :, ::2, ::2])
torch.testing.assert_close(convolution.weight.grad[:, :, 0, 0], expected, rtol=1e-4, atol=1e-3)
"""


@pytest.mark.parametrize("layout", ["channels_last", "contiguous_format"])
@pytest.mark.parametrize(("channels", "size"), [(3, 224), (9, 112), (15, 112), (16, 112)])
def test_a_strided_convolution_of_one_pixel_neither_ends_the_process_nor_errs(
    channels: int, size: int, layout: str
) -> None:
    """PyTorch alone writes outside of its memory here, which ends a process of its own."""
    script = STEM.format(channels=channels, size=size, layout=layout)
    environment = {**os.environ, "MALLOC_PERTURB_": "5"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.Conv2d(6, 12, 5, padding=2, groups=6),
        nn.Conv2d(6, 6, 5, padding=2),
        nn.Conv2d(6, 6, 5, padding=4, dilation=2, groups=6),
        nn.Conv2d(6, 6, 5, padding="same", groups=6),
        nn.Conv2d(6, 6, 5, padding=2, groups=6).requires_grad_(False),
    ],
    ids=["map not smaller", "multiplier", "dense", "dilated", "named padding", "frozen"],
)
def test_other_convolutions_run_as_they_are(convolution: nn.Module) -> None:
    image = torch.randn(2, 6, 4, 4, requires_grad=True)
    with FastOperators():
        output = convolution(image)
    assert not is_ours(output)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "kernel", "stride", "padding"),
    [
        (12, 12, 3, 2, 1),
        (12, 12, 5, 2, 2),
        (4, 4, 5, 2, 2),
        (4, 4, 5, 1, 2),
        (9, 9, 5, 2, 0),
        (6, 6, 5, 1, 2),
        (8, 13, 5, 1, 2),
        (13, 8, 3, 2, 0),
        (11, 12, 7, 3, 3),
        (12, 11, (3, 5), (2, 1), (1, 2)),
        (6, 6, 3, 2, 3),
    ],
)
def test_bf16_has_the_gradients_of_fp32(
    height: int, width: int, kernel: Any, stride: Any, padding: Any, bias: bool
) -> None:
    torch.manual_seed(0)
    exact = nn.Conv2d(16, 16, kernel, stride, padding, groups=16, bias=bias)
    exact.load_state_dict({name: value.bfloat16().float() for name, value in exact.state_dict().items()})
    image = torch.randn(4, 16, height, width).bfloat16().float().to(memory_format=torch.channels_last)
    image.requires_grad_()
    expected_output = exact(image)
    direction = torch.randn_like(expected_output).bfloat16()
    expected = torch.autograd.grad(expected_output, [image, *exact.parameters()], direction.float())
    with torch.autocast("cpu", torch.bfloat16), FastOperators():
        output = exact(image)
    assert is_ours(output)
    assert output.dtype is torch.bfloat16
    assert output.is_contiguous(memory_format=torch.channels_last)
    actual = torch.autograd.grad(output, [image, *exact.parameters()], direction)
    assert [gradient.dtype for gradient in actual] == [torch.float32] * len(actual)
    for ours, right in zip(actual, expected, strict=True):
        assert (ours - right).norm() < 2**-7 * right.norm()


@pytest.mark.parametrize(
    ("dtype", "size", "expected"), [(torch.float32, 8, torch.float32), (torch.float64, 2, torch.float64)]
)
def test_what_autocast_leaves_alone_stays(dtype: torch.dtype, size: int, expected: torch.dtype) -> None:
    convolution = nn.Conv2d(6, 6, 3, 2, 1, groups=6).to(dtype)
    image = torch.randn(2, 6, size, size, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.float64), FastOperators():
        output = convolution(image)
    assert output.dtype is expected
    assert is_ours(output) == (size < 3)  # small maps are, strided ones in fp32 are not


def test_geometry_may_be_plain_numbers() -> None:
    image, weight = torch.randn(2, 6, 2, 2), nn.Parameter(torch.randn(6, 1, 3, 3))
    with FastOperators():
        output = torch.conv2d(image, weight, None, 2, 1, 1, 6)
    assert is_ours(output)
    torch.testing.assert_close(output, torch.conv2d(image, weight, None, 2, 1, 1, 6))
    output.sum().backward()
    assert weight.grad is not None
