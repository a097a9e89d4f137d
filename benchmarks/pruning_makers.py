"""Networks cut by other tools, each as its own documentation has it, for `benchmarks.pruning_peers`."""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import symbolic_trace
from torch.fx.passes.shape_prop import ShapeProp

from pipeline import nni_edge

GRAPH_SIZE = 32
"""Pixels of the image with which tools follow the network; channels do not depend on it."""

Cut = Callable[[nn.Module, float], nn.Module]
"""Removes about this share of the channels; may work in place, and returns the smaller network."""


def torch_pruning(module: nn.Module, ratio: float, *, everywhere: bool = False) -> nn.Module:
    """Torch-Pruning, group L2 norm, the same share of every layer, multiples of 8."""
    import torch_pruning as tp  # pyright: ignore[reportMissingImports]

    pruner = tp.pruner.BasePruner(
        module,
        torch.zeros(1, 3, GRAPH_SIZE, GRAPH_SIZE),
        importance=tp.importance.GroupMagnitudeImportance(),
        global_pruning=everywhere,
        pruning_ratio=ratio,
        ignored_layers=[module.get_submodule("classifier")],
        round_to=8,
    )
    pruner.step()
    return module


def torch_pruning_global(module: nn.Module, ratio: float) -> nn.Module:
    """Torch-Pruning, group L2 norm, ranked over all layers, multiples of 8."""
    return torch_pruning(module, ratio, everywhere=True)


def nni_l1(module: nn.Module, ratio: float) -> nn.Module:
    """NNI's L1NormPruner and ModelSpeedup as in its documentation, each convolution masked by itself."""
    return _nni(module, [{"op_types": ["Conv2d"], "sparse_ratio": ratio}])


def nni_l1_groups(module: nn.Module, ratio: float) -> nn.Module:
    """NNI's L1NormPruner and ModelSpeedup, convolutions that depend on each other masked alike."""
    graph = symbolic_trace(module)
    ShapeProp(graph).propagate(torch.zeros(1, 3, GRAPH_SIZE, GRAPH_SIZE))
    entries = [{"op_types": ["Conv2d"], "sparse_ratio": ratio}]
    return _nni(module, nni_edge.group_dependent_channels(graph, entries))


def tinynn(module: nn.Module, ratio: float) -> nn.Module:
    """TinyNeuralNetwork's OneShotChannelPruner, L2 norm, the same share of every layer, multiples of 8."""
    from tinynn.graph.tracer import model_tracer  # pyright: ignore[reportMissingImports]
    from tinynn.prune.oneshot_pruner import OneShotChannelPruner  # pyright: ignore[reportMissingImports]

    settings = {"sparsity": ratio, "metrics": "l2_norm", "multiple": 8}
    # It does not follow layers that pad, and what it cuts does not depend on them.
    pads = {path: pad for path, pad in module.named_modules() if isinstance(pad, nn.ZeroPad2d)}
    for path in pads:
        module.set_submodule(path, nn.Identity())
        unit = module.get_submodule(path.rpartition(".")[0])
        assert isinstance(unit.conv, nn.Conv2d)
        unit.conv.padding = (1, 1)
    with model_tracer():
        OneShotChannelPruner(module, torch.zeros(1, 3, GRAPH_SIZE, GRAPH_SIZE), settings).prune()
    for path, pad in pads.items():
        module.set_submodule(path, pad)
        unit = module.get_submodule(path.rpartition(".")[0])
        assert isinstance(unit.conv, nn.Conv2d)
        unit.conv.padding = (0, 0)
    return module


def fasterai(module: nn.Module, ratio: float) -> nn.Module:
    """fasterai's Pruner, large_final, the same share of every layer, multiples of 8."""
    from fasterai.core.criteria import large_final  # pyright: ignore[reportMissingImports]
    from fasterai.prune.pruner import Pruner  # pyright: ignore[reportMissingImports]

    images = torch.zeros(1, 3, GRAPH_SIZE, GRAPH_SIZE)
    with contextlib.redirect_stdout(sys.stderr):  # it prints its progress
        pruner = Pruner(module, ratio, "local", large_final, example_inputs=images, round_to=8)
        pruner.prune_model()
    return module


def _nni(module: nn.Module, entries: list[dict[str, Any]]) -> nn.Module:
    with contextlib.redirect_stdout(sys.stderr):  # it prints bare words
        pruner = nni_edge.L1NormPruner(module, entries)
        _, masks = pruner.compress()
        pruner.unwrap_model()
        images = torch.rand(2, 3, GRAPH_SIZE, GRAPH_SIZE)
        # Its own tracer does not run on this PyTorch; the graph of torch.fx is what it may be given instead.
        graph, logger = symbolic_trace(module), nni_edge.LOGGER
        return nni_edge.ModelSpeedup(module, images, masks, graph_module=graph, logger=logger).speedup_model()


MAKERS: dict[str, Cut] = {
    "torch-pruning": torch_pruning,
    "torch-pruning-global": torch_pruning_global,
    "nni-l1": nni_l1,
    "nni-l1-groups": nni_l1_groups,
    "tinynn": tinynn,
    "fasterai": fasterai,
}
"""Name of a row to how it is cut; the docstring says it in words."""
