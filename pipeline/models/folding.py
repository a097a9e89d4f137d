"""Batch norms folded into the convolutions before them."""

import torch
from torch import nn

import students
from pipeline.models.layers import Network, trace
from pipeline.models.storage import Model


def fold_batch_norm(model: Model) -> Network:
    """The same function without batch norms, on the CPU and in evaluation mode.

    It is the network that ``students.build`` makes of the card's arguments with ``norm=False``. The
    statistics are those of evaluation, so the model's module is left as it was and need not be in
    evaluation mode.

    Raises:
        NetworkError: the student is not a chain of layers.
    """
    network = trace(model.module)
    folded = students.build(model.card.architecture, {**model.card.arguments, "norm": False})
    tensors = {name: value.cpu() for name, value in model.module.state_dict().items()}
    for layer in network.layers.values():
        if layer.norm is None:
            continue
        norm, conv = model.module.get_submodule(layer.norm), layer.weights
        assert isinstance(norm, nn.BatchNorm2d)
        mean = tensors[f"{layer.norm}.running_mean"].double()
        variance = tensors[f"{layer.norm}.running_var"].double()
        gain = tensors[f"{layer.norm}.weight"].double() / (variance + norm.eps).sqrt()
        bias = tensors.get(f"{conv}.bias", torch.zeros_like(mean)).double()
        shifted = (bias - mean) * gain + tensors[f"{layer.norm}.bias"].double()
        weight = tensors[f"{conv}.weight"]
        tensors[f"{conv}.weight"] = (weight.double() * gain.view(-1, 1, 1, 1)).to(weight.dtype)
        tensors[f"{conv}.bias"] = shifted.to(weight.dtype)
        for key in norm.state_dict():
            del tensors[f"{layer.norm}.{key}"]
    folded.load_state_dict(tensors)
    return network.without_norms(folded.eval())
