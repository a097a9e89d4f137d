"""The last layers of a classifier, which adaptation replaces.

Most networks have one, a linear layer; some have a convolution, and some have two whose answers are averaged.
They are found by what the network computes: the layers between which and the logits no other layer lies.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from teachers.errors import TeacherError

Layer = nn.Linear | nn.Conv2d


def find(module: nn.Module, size: int) -> tuple[str, ...]:
    """Return the module paths of the last layers of a network from images to logits.

    They are linear layers or convolutions with one output per class; nothing is returned if the logits come
    from anything else.

    Args:
        module: the network, on the CPU; it is left in evaluation mode.
        size: side in pixels of the images with which the network is tried.

    Raises:
        TeacherError: the network returns no tensor.
    """
    makers: dict[Any, str] = {}
    handles = [
        part.register_forward_hook(_note(makers, path))
        for path, part in module.named_modules()
        if isinstance(part, Layer)
    ]
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            logits = module.eval()(torch.zeros(1, 3, size, size))
    finally:
        for handle in handles:
            handle.remove()
        for parameter in frozen:
            parameter.requires_grad_(False)
    if not isinstance(logits, Tensor):
        raise TeacherError(f"a tensor of logits is expected; the network returns {type(logits).__name__}")
    last = _first_makers([logits.grad_fn], makers)
    inner = _first_makers([node for maker in last for node, _ in maker.next_functions], makers)
    paths = {makers[node] for node in last}
    # A layer that also feeds another one is part of a residual stream: the network has no classifier.
    if last & inner or {_width(module.get_submodule(path)) for path in paths} != {logits.shape[1]}:
        return ()
    return tuple(path for path, _ in module.named_modules() if path in paths)


def count_outputs(module: nn.Module, paths: Sequence[str]) -> int:
    """Return the number of outputs of the last layers."""
    return _width(module.get_submodule(paths[0]))


def replace(module: nn.Module, paths: Sequence[str], classes: int) -> None:
    """Replace last layers by new ones for ``classes``, initialised with zeros.

    A ReLU that follows a last layer is removed: no logit below 0 passes it, and no gradient at 0.

    Raises:
        TeacherError: a layer has groups.
    """
    for path in paths:
        old = module.get_submodule(path)
        assert isinstance(old, Layer)
        if isinstance(old, nn.Linear):
            new: Layer = nn.Linear(old.in_features, classes)
        elif old.groups > 1:
            raise TeacherError(f"the last layer `{path}` has {old.groups} groups; allowed: 1")
        else:
            new = nn.Conv2d(old.in_channels, classes, old.kernel_size, old.stride, old.padding, old.dilation)  # pyright: ignore[reportArgumentType] - pairs
        nn.init.zeros_(new.weight)
        assert new.bias is not None
        nn.init.zeros_(new.bias)
        parent_path, _, name = path.rpartition(".")
        parent = module.get_submodule(parent_path)
        setattr(parent, name, new)
        if isinstance(parent, nn.Sequential):
            names = list(parent._modules)
            follower = names[names.index(name) + 1] if name != names[-1] else name
            if isinstance(parent._modules[follower], nn.ReLU):
                setattr(parent, follower, nn.Identity())
    for part in module.modules():
        if isinstance(getattr(part, "num_classes", None), int):
            part.num_classes = classes  # pyright: ignore[reportArgumentType] - some forward methods read it


def _width(layer: nn.Module) -> int:
    assert isinstance(layer, Layer)
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _note(makers: dict[Any, str], path: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        makers[output.grad_fn] = path

    return hook


def _first_makers(nodes: Sequence[Any], makers: Mapping[Any, str]) -> set[Any]:
    """The nodes of layers that are met first on all ways back from some nodes."""
    found: set[Any] = set()
    seen: set[Any] = set()
    open_nodes = list(nodes)
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in makers:
            found.add(node)
        else:
            open_nodes += [following for following, _ in node.next_functions]
    return found
