"""A variant as a program of ExecuTorch, whose XNNPACK delegate computes with the variant's own integers.

An int8 layer is written as PyTorch's exported quantisation writes one: integers with a step per channel, and
activations that are rounded to the variant's own grid. Unsigned integers with zero point 0 become signed ones
with zero point -128; sums, biases and steps stay as they are.
"""

from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import (  # pyright: ignore[reportMissingImports]
    XnnpackPartitioner,
)
from executorch.exir import to_edge_transform_and_lower  # pyright: ignore[reportMissingImports]
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchao.quantization.pt2e import (  # pyright: ignore[reportMissingImports]
    quantize_pt2e,  # noqa: F401 - the import registers the operators of quantised graphs
)

from pipeline.models import storage
from pipeline.models.folding import fold_batch_norm
from pipeline.models.layers import IMAGES
from pipeline.models.storage import Model
from pipeline.quantization.grid import integer_bias, integer_weight

LEAST, GREATEST = -128, 127


class Rounded(nn.Module):
    """Values on the grid of signed eight-bit integers."""

    def __init__(self, step: float, zero_point: int) -> None:
        super().__init__()
        self.step, self.zero_point = step, zero_point

    def forward(self, values: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Round to the grid and back, as two operators of the exported graph."""
        grid = self.step, self.zero_point, LEAST, GREATEST, torch.int8
        integers = torch.ops.quantized_decomposed.quantize_per_tensor.default(values, *grid)
        return torch.ops.quantized_decomposed.dequantize_per_tensor.default(integers, *grid)


class Convolution(nn.Module):
    """A convolution whose weights are integers with a step per channel."""

    def __init__(self, part: nn.Conv2d, step: Tensor, read: float, limit: int) -> None:
        super().__init__()
        assert part.bias is not None
        assert not isinstance(part.padding, str)
        self.stride, self.padding, self.groups = part.stride, part.padding, part.groups
        self.register_buffer("integers", integer_weight(part.weight.detach(), step, limit).to(torch.int8))
        self.register_buffer("step", step.float().flatten())
        self.register_buffer("zero_points", torch.zeros(part.out_channels, dtype=torch.int64))
        self.register_buffer("bias", _bias(part.bias, step, read))

    def forward(self, values: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        """Convolve with the weights that the integers stand for."""
        weight = torch.ops.quantized_decomposed.dequantize_per_channel.default(
            self.integers, self.step, self.zero_points, 0, -GREATEST, GREATEST, torch.int8
        )
        bias = self.get_buffer("bias")
        return nn.functional.conv2d(
            values, weight, bias, stride=self.stride, padding=self.padding, groups=self.groups
        )


class Network(nn.Module):
    """A variant from images of bytes to logits."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.contract = model.card.input
        folded, self.images = fold_batch_norm(model), nn.Identity()
        module = folded.module
        if (quantization := model.quantization) is not None:
            scales = {name: float(scale) for name, scale in quantization.activation_scales.items()}
            for name, step in quantization.weight_scales.items():
                layer, part = folded.layers[name], folded.part(name)
                read, limit = scales[layer.reads], quantization.weight_limit
                if isinstance(part, nn.Conv2d):
                    module.set_submodule(layer.weights, Convolution(part, step, read, limit))
                else:  # the logits are not rounded, and the delegate has no such layer with integers
                    weight = integer_weight(part.weight.detach(), step, limit) * step.view(-1, 1)
                    part.weight = nn.Parameter(weight.float())
                    part.bias = nn.Parameter(_bias(part.bias, step, read))
            for name, scale in scales.items():
                if name == IMAGES:
                    self.images = Rounded(scale, (self.contract.zero_point or 0) + LEAST)
                else:
                    path = folded.output(name)
                    rounded = nn.Sequential(module.get_submodule(path), Rounded(scale, LEAST))
                    module.set_submodule(path, rounded)
        self.module = module.eval()

    def forward(self, images: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch classes"]:
        """The logits of images as bytes."""
        return self.module(self.images(self.contract.normalise(images)))


def _bias(bias: Tensor, step: Tensor, read: float) -> Float[Tensor, " channels"]:
    return (integer_bias(bias.detach(), read, step).double() * step.double().flatten() * read).float()


def write(variant: Path, file: Path) -> None:
    """Write the program of a variant.

    Args:
        variant: folder of the variant in `artifacts/models`.
        file: the .pte file.
    """
    model = storage.load(variant)
    size = model.card.input.size
    images = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    network = Network(model).eval()
    network(images)  # what the contract keeps for the next call would otherwise be a tensor of the tracer
    program = torch.export.export(network, (images,), strict=False)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    file.write_bytes(lowered.to_executorch().buffer)
