"""The names of NNI 3.0 that this project uses, and the workarounds that they need.

No other file imports ``nni``. NNI chooses the channels that pruning removes and removes them
(``pipeline.pruning.masks``), and owns the wrappers, targets and scales of quantisation-aware training
(``pipeline.quantization.wrappers``). It is no longer maintained, so what is wrong with it is worked around
here. Workarounds that need functions of ours stay beside those functions.
"""

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils import _pytree

__all__ = [
    "LOGGER",
    "FPGMPruner",
    "L1NormPruner",
    "L2NormPruner",
    "ModelSpeedup",
    "QATQuantizer",
    "QuantizationSetting",
    "TaylorPruner",
    "TorchEvaluator",
    "apply_method",
    "group_dependent_channels",
    "quiet",
    "trace",
]

PYTREE_REGISTRIES: tuple[dict[Any, Any], ...] = (
    _pytree.SUPPORTED_NODES,
    _pytree.SUPPORTED_SERIALIZED_TYPES,
    _pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE,
)
"""Where PyTorch keeps how containers are taken apart and put together."""


@contextlib.contextmanager
def _unchanged_pytrees() -> Iterator[None]:
    """Restore PyTorch's registries of containers afterwards.

    Importing NNI registers torch.fx's ``immutable_dict`` and ``immutable_list`` a second time, without the
    functions that flatten them with keys. ``torch.export`` needs those, and PyTorch warns of the second
    registration. NNI itself works with PyTorch's own entries, so they are put back.
    """
    registries = [dict(registry) for registry in PYTREE_REGISTRIES]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    for registry, entries in zip(PYTREE_REGISTRIES, registries, strict=True):
        registry.clear()
        registry.update(entries)


@contextlib.contextmanager
def _without_transformers() -> Iterator[None]:
    """Let NNI be imported as where transformers is not installed.

    NNI supports the trainer of transformers, which is not used here and takes a second to import.
    """
    name = "transformers"
    imported = sys.modules.get(name)
    sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules[name]
        if imported is not None:
            sys.modules[name] = imported


with _unchanged_pytrees(), _without_transformers():
    import nni
    from nni import trace
    from nni.compression.base import apply_method, wrapper
    from nni.compression.base.setting import QuantizationSetting
    from nni.compression.pruning import FPGMPruner, L1NormPruner, L2NormPruner, TaylorPruner
    from nni.compression.quantization import QATQuantizer
    from nni.compression.speedup import ModelSpeedup
    from nni.compression.speedup.dependency import auto_set_denpendency_group_ids as group_dependent_channels
    from nni.compression.utils import TorchEvaluator

# NNI logs to standard output, and warns of what happens in every chain of convolutions. Standard output
# belongs to the stages, some of which print JSON, so only errors of NNI are logged.
nni.silence_stdout()
LOGGER = logging.getLogger("nni")
LOGGER.setLevel(logging.ERROR)

# Every forward pass of every quantisation wrapper ends in torch.cuda.empty_cache(), which waits for the
# device and gives its memory back, once per layer. The module of the wrappers therefore sees a torch in which
# that function does nothing.
wrapper.torch = SimpleNamespace(
    **{**vars(torch), "cuda": SimpleNamespace(**{**vars(torch.cuda), "empty_cache": lambda: None})}
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what NNI prints and the warnings that it raises.

    Its pruners and its speedup print single words with ``print`` and call functions that PyTorch has
    deprecated; neither says anything about the network at hand.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
