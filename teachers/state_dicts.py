"""State dicts from files of any origin; only tensors are read, and no code in a file is run."""

import argparse
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from teachers.errors import WeightsError, one_line
from teachers.local_files import KINDS

STATES = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params")
"""Keys below which training scripts store a state dict, beside the state of their optimiser."""
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""Keys of averaged weights, which take precedence: they are what such a script evaluates."""
PREFIXES = (
    "module.",
    "_orig_mod.",
    "_forward_module.",
    "model.",
    "net.",
    "network.",
    "student.",
    "ema_model.",
)
"""Prefixes of every name that `DataParallel`, `torch.compile`, Lightning and training scripts give."""
BYSTANDERS = ("n_averaged", "total_ops", "total_params")
"""Last parts of names that `AveragedModel` and thop, a counter of operations, add; no answer needs them."""
LIGHTNING = "pytorch-lightning_version"
"""Key of a checkpoint of Lightning, which may hold tensors of a loss or of metrics beside the network's."""
UNPICKLER = re.compile(r"(?:WeightsUnpickler error|Unsupported global): (.+?)(?: was not| Check the|$)")
"""The reason within PyTorch's advice to read a file unsafely."""
ZIP = b"PK\x03\x04"
STARTS = {
    ZIP: "PyTorch",
    b"\x80": "PyTorch",
    b"version https://git-lfs": "a pointer of Git LFS; `git lfs pull` gets the file itself",
}
"""What a file is that begins with these bytes: a zip or a pickle of PyTorch, or something else in words."""
OTHERS = {
    ".onnx": "an ONNX file",
    ".tflite": "a LiteRT file",
    ".h5": "a file of Keras",
    ".keras": "a file of Keras",
    ".pb": "a graph of TensorFlow",
    ".mlmodel": "a file of Core ML",
    ".engine": "a file of TensorRT",
    ".pt2": "a program of torch.export",
}
"""What files are by their suffix that hold networks in other forms."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types of weights that are converted to those of the network. Others hold rounded weights without their
scales."""
VARIANCES = ".running_var"
"""Ending of the variances of batch norm."""
COUNTERS = ".num_batches_tracked"
"""Ending of the counters of batch norm, which PyTorch writes since 0.4.1 and which no answer depends on."""


def build(
    make: Callable[[int], nn.Module], paths: Sequence[str], file: Path, unused: Sequence[str] = ()
) -> nn.Module:
    """Build a network with the tensors of a file, for as many classes as the file's head has.

    Args:
        make: function from the number of classes to a network with fresh weights.
        paths: module paths of the network's last layers.
        file: file that ``read`` takes.
        unused: module paths of parts that the network is built without.

    Raises:
        WeightsError: the file is damaged or rejected, or its tensors do not fit the network.
    """
    tensors = {
        name: value
        for name, value in read(file).items()
        if not name.startswith(tuple(f"{u}." for u in unused))
    }
    weight = f"{paths[0]}.weight"
    if weight not in tensors or not tensors[weight].ndim:
        raise WeightsError(
            f"{file}: a head `{weight}` is expected; found {', '.join(list(tensors)[-2:]) or 'nothing'}"
        )
    if not len(tensors[weight]):
        raise WeightsError(f"{file}: its head `{weight}` has 0 classes; allowed: at least 1")
    module = make(len(tensors[weight]))
    fill(module, tensors, str(file))
    return module


def read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.safetensors`` file, or of a ``.pth`` file that holds weights alone.

    Raises:
        WeightsError: the file is missing, damaged, of another kind than its name says, or a pickle that would
            run code; or a tensor is sparse, empty of values, complex or quantised.
    """
    if not path.is_file():
        problem = "this is not a file" if path.exists() else "no such file"
        raise WeightsError(f"{path}: {problem}; a {KINDS} file with a state dict is expected")
    safe = path.suffix.lower() == ".safetensors"
    if other := OTHERS.get(path.suffix.lower()):
        raise WeightsError(f"{path} is {other}; a {KINDS} file with a state dict is expected")
    try:
        _check_start(path, safe=safe)
        content = load_file(path) if safe else _unpickle(path)
    except WeightsError:
        raise
    except Exception as error:  # a damaged file can make its reader fail in any way
        kind = "safetensors" if safe else "PyTorch"
        raise WeightsError(f"{path} is not an intact {kind} file: {one_line(error)}") from error
    tensors = _state(content)
    if not tensors:
        raise WeightsError(f"{path} holds {_words(content)}; a state dict of tensors is expected")
    tensors = {name: value for name, value in tensors.items() if name.rpartition(".")[2] not in BYSTANDERS}
    for name, value in tensors.items():
        if kind := _unusual(value):
            raise WeightsError(f"{path}: {name} is {kind}; allowed: dense tensors of real numbers")
    if isinstance(content, Mapping) and LIGHTNING in content:
        inside = {name: value for name, value in tensors.items() if name.startswith(PREFIXES)}
        tensors = inside or tensors
    # One wrapper can be in another one: `torch.compile` of `DataParallel`.
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _check_start(path: Path, *, safe: bool) -> None:
    """Check by its first bytes whether a file is of the kind that its name says."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise WeightsError(f"{path} is empty")
    kind = next((kind for bytes_, kind in STARTS.items() if start.startswith(bytes_)), "unknown")
    # A safetensors file begins with a length, whose first byte is that of a pickle in one of 32 files.
    if start[8:10] == b'{"':
        kind = "safetensors"
    if kind == ("safetensors" if safe else "PyTorch") or (not safe and tarfile.is_tarfile(path)):
        if start.startswith(ZIP) and not zipfile.is_zipfile(path):
            raise WeightsError(f"{path} is not an intact PyTorch file: it is cut off")
        return
    if kind in ("PyTorch", "safetensors"):
        other = ".safetensors" if kind == "safetensors" else ".pth"
        raise WeightsError(f"{path} is a {kind} file by its content; give it the ending {other}")
    expected = "safetensors" if safe else "PyTorch"
    words = f"it begins with {start[:16]!r}" if kind == "unknown" else f"it is {kind}"
    raise WeightsError(f"{path} is not an intact {expected} file: {words}")


def _check_sums(path: Path) -> None:
    """Compare the parts of a file of ``torch.save`` with their checksums, which PyTorch does not look at."""
    with zipfile.ZipFile(path) as archive:
        # PyTorch can be told to write no checksums; then all are 0.
        damaged = archive.testzip() if any(part.CRC for part in archive.infolist()) else None
    if damaged is not None:
        raise WeightsError(f"{path} is damaged: its part {damaged} does not fit its checksum; copy it again")


def _check_program(path: Path) -> None:
    """Check that a ZIP archive is one of ``torch.save``, and not of a program or of another library."""
    with zipfile.ZipFile(path) as archive:
        names = [name.rpartition("/")[2] for name in archive.namelist()]
    if "constants.pkl" in names:
        raise WeightsError(
            f"{path} is a TorchScript program; store the state dict of the network with torch.save"
        )
    if "data.pkl" not in names:
        raise WeightsError(f"{path} is a ZIP archive without weights of torch.save; found {names[0]!r}")


def _words(content: Any) -> str:
    """What a file holds that is no state dict."""
    if not isinstance(content, Mapping):
        return type(content).__name__
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if len(others) < len(content):
        return f"{len(content) - len(others)} tensors and, beside them, {', '.join(map(str, others[:5]))}"
    return str(list(content)[:5])


def _unusual(tensor: Tensor) -> str | None:
    """What makes a tensor unusable as weights; None if it is usable."""
    if tensor.layout != torch.strided:
        return f"sparse ({tensor.layout})"
    if tensor.is_meta:
        return "without values (on the device `meta`)"
    if (
        tensor.is_complex()
        or tensor.is_quantized
        or (tensor.is_floating_point() and tensor.dtype not in FLOATS)
    ):
        return f"of the type {tensor.dtype}"
    return None


def _unpickle(path: Path) -> Any:
    """Read a file of ``torch.save`` without running code."""
    if zipfile.is_zipfile(path):
        _check_program(path)
        _check_sums(path)
    if tarfile.is_tarfile(path):
        raise WeightsError(
            f"{path} has the tar format of PyTorch before 0.1.10, which is not read without running code; "
            "store its state dict again with torch.save"
        )
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
        # about old pickle formats, which are loaded or rejected like others
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            text = " ".join(str(error).split())
            found = UNPICKLER.search(text)
            may_be_damaged = "" if "Unsupported global" in text else "it is damaged, or "
            raise WeightsError(
                f"{path} must hold a state dict alone, as torch.save(model.state_dict(), ...) writes it; it "
                f"is rejected, since {may_be_damaged}loading it would run its code: "
                f"{found[1] if found else one_line(error)}"
            ) from error


def _state(content: Any) -> dict[str, Tensor]:
    """The state dict that a file holds, alone or below one of the usual keys; empty if there is none."""
    if not isinstance(content, Mapping):
        return {}
    for key in (*AVERAGES, *STATES):
        if isinstance(content.get(key), Mapping) and (found := _state(content[key])):
            return found
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        return {}
    return dict(content)


def fill(module: nn.Module, tensors: dict[str, Tensor], origin: str) -> None:
    """Load a state dict by name. Counters of batch norm may be missing.

    Raises:
        WeightsError: names or shapes differ, or integers stand for weights; the message gives the first of
            each kind. Or values are not finite, or variances are negative.
    """
    expected = module.state_dict()
    counters = {name: value for name, value in expected.items() if name.endswith(COUNTERS)}
    tensors = {**counters, **tensors}
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    integers = [
        f"{name} is {tensors[name].dtype}"
        for name, value in expected.items()
        if name in tensors and value.is_floating_point() and not tensors[name].is_floating_point()
    ]
    problems = [
        f"{len(names)} {problem} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for problem, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("of integers without their scale", integers),
        )
        if names
    ]
    if problems:
        raise WeightsError(f"{origin}: {len(expected)} tensors are expected; {', '.join(problems)}")
    damaged = [
        name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()
    ]
    if damaged:
        raise WeightsError(
            f"{origin}: {len(damaged)} tensors hold values that are not finite ({', '.join(damaged[:2])})"
        )
    negative = [
        name for name, value in tensors.items() if name.endswith(VARIANCES) and bool((value < 0).any())
    ]
    if negative:
        raise WeightsError(f"{origin}: {len(negative)} variances are negative ({', '.join(negative[:2])})")
    # The state dict also holds the versions of the modules, which some of them read.
    expected.update(tensors)
    module.load_state_dict(expected)
