"""Batch norms of few channels, computed in whole registers."""

import copy

import pytest
import torch
from torch import Tensor, nn

from pipeline.training.cpu_operators import FastOperators
from students.mobilenet_v1 import MobileNetV1


def images(channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, channels, height, width, generator=generator, dtype=dtype) * 2 + 1
    return values.contiguous(memory_format=torch.channels_last).requires_grad_()


def norm(channels: int, dtype: torch.dtype = torch.double) -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.3).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.copy_(torch.rand(channels, generator=generator) + 0.5)
    return module


def learn(module: nn.Module, image: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    output = module(image)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output)
    gradients = torch.autograd.grad(output, [image, *module.parameters()], direction)
    return output, list(gradients), [value.clone() for value in module.buffers()]


def is_ours(output: Tensor) -> bool:
    return "Narrow" in type(output.grad_fn).__name__


@pytest.mark.parametrize(
    ("channels", "height", "width"), [(24, 6, 8), (24, 1, 4), (8, 3, 12), (12, 5, 8), (20, 2, 16), (40, 7, 4)]
)
def test_values_gradients_and_statistics_are_pytorchs(channels: int, height: int, width: int) -> None:
    module = norm(channels)
    image = images(channels, height, width, torch.double)
    expected = learn(copy.deepcopy(module), image)
    with FastOperators():
        actual = learn(module, image)
    assert is_ours(actual[0])
    assert not is_ours(expected[0])
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    assert actual[0].is_contiguous(memory_format=torch.channels_last)
    assert actual[1][0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_worse_than_pytorchs(dtype: torch.dtype) -> None:
    exact = learn(norm(24), images(24, 16, 16, torch.double))
    given = images(24, 16, 16, torch.double).detach().to(dtype).requires_grad_()
    pytorchs = learn(norm(24, torch.float32), given)
    with FastOperators():
        ours = learn(norm(24, torch.float32), given)
    assert is_ours(ours[0])
    assert ours[0].dtype is dtype

    def error(found: Tensor, right: Tensor) -> float:
        return ((found.double() - right).norm() / right.norm()).item()

    for mine, theirs, right in zip(
        [ours[0], *ours[1], *ours[2][:2]],
        [pytorchs[0], *pytorchs[1], *pytorchs[2][:2]],
        [exact[0], *exact[1], *exact[2][:2]],
        strict=True,
    ):
        assert error(mine, right) < 2 * error(theirs, right) + 2**-20


def test_a_mean_far_from_0_costs_no_digits() -> None:
    module = norm(24, torch.float32)
    image = images(24, 8, 8, torch.float32).detach() + 1000
    with FastOperators():
        _, _, (_, var, _) = learn(module, image.requires_grad_())
    exact = 0.7 + 0.3 * image.detach().double().var((0, 2, 3))
    torch.testing.assert_close(var.double(), exact, rtol=1e-4, atol=0)


def test_a_channel_that_is_constant_has_no_variance() -> None:
    module = norm(24, torch.float32)
    image = images(24, 8, 8, torch.float32).detach()
    image[:, 3] = 7
    with FastOperators():
        output, _, (_, var, _) = learn(module, image.requires_grad_())
    assert output.isfinite().all()
    torch.testing.assert_close(output[:, 3], module.bias[3].expand_as(output[:, 3]), atol=1e-2, rtol=0)
    torch.testing.assert_close(var[3], torch.tensor(0.7))


@pytest.mark.parametrize(
    "case", ["wide", "whole registers", "odd width", "stored by channel", "evaluation", "without weights"]
)
def test_other_batch_norms_run_as_they_are(case: str) -> None:
    channels = {"wide": 72, "whole registers": 32}.get(case, 24)
    module = nn.BatchNorm2d(channels, affine=case != "without weights").train(case != "evaluation")
    image = images(channels, 8, 9 if case == "odd width" else 8, torch.float32)
    if case == "stored by channel":
        image = image.contiguous()
    with FastOperators():
        output = module(image)
    assert not is_ours(output)


def test_running_statistics_may_be_missing() -> None:
    module = nn.BatchNorm2d(24, track_running_stats=False)
    image = images(24, 4, 4, torch.float32)
    with FastOperators():
        output = module(image)
    assert is_ours(output)
    torch.testing.assert_close(output, module(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardswish])
def test_an_activation_may_change_the_output_in_place(activation: type[nn.ReLU]) -> None:
    module = nn.Sequential(norm(24), activation(inplace=True))
    image = images(24, 6, 8, torch.double)
    expected = learn(copy.deepcopy(module), image)
    with FastOperators():
        actual = learn(module, image)
        assert is_ours(norm(24)(image))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_the_student_trains_with_them() -> None:
    student = MobileNetV1(classes=3, size=32).double().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    twin = copy.deepcopy(student)
    image = images(3, 32, 32, torch.double)
    expected = learn(twin, image)
    with FastOperators():
        actual = learn(student, image)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-8)
