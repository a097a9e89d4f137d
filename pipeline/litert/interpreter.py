"""LiteRT files in LiteRT's interpreter, with XNNPACK, which is what runs them on phones by default."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from jaxtyping import Float32, UInt8

from pipeline.litert import flatfile
from pipeline.litert.graph import LiteRtError

PACKAGE = "ai-edge-litert"
"""The package that carries LiteRT."""


@dataclass(frozen=True)
class Session:
    """An open file."""

    interpreter: Any
    source: int
    """Number of the input tensor."""
    targets: tuple[int, ...]
    """Numbers of the output tensors, the logits first."""
    side: int
    """Height and width of the image in pixels."""

    def run(self, images: UInt8[np.ndarray, "batch height width 3"]) -> Float32[np.ndarray, "batch classes"]:
        """The logits of some images, which are computed one at a time, as the file is made for."""
        return np.concatenate([self.outputs(image[None])[0] for image in images])

    def outputs(self, image: UInt8[np.ndarray, "1 height width 3"]) -> list[np.ndarray]:
        """All outputs for one image, the logits first."""
        self.interpreter.set_tensor(self.source, image)
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(target) for target in self.targets]


def runtime() -> str:
    """Name and version of the runtime."""
    return f"{PACKAGE} {version(PACKAGE)}"


def open_file(path: Path, *, threads: int, names: Sequence[str] = (), xnnpack: bool = True) -> Session:
    """Open a file that takes one image.

    Args:
        path: the file.
        threads: number of threads.
        names: inner tensors to have as outputs after the logits.
        xnnpack: whether XNNPACK computes what it can; otherwise LiteRT's own kernels do, whose integer
            arithmetic rounds twice.

    Raises:
        LiteRtError: the file is missing or damaged, or does not take one image of bytes.
    """
    resolver = OpResolverType.BUILTIN if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        content = path.read_bytes()
        interpreter = Interpreter(
            model_content=flatfile.expose(content, names) if names else content,
            num_threads=threads,
            experimental_op_resolver_type=resolver,
        )
        interpreter.allocate_tensors()
    except (OSError, ValueError, RuntimeError) as error:
        raise LiteRtError(f"{path} cannot be opened in LiteRT: {error}") from error
    [source], targets = interpreter.get_input_details(), interpreter.get_output_details()
    if source["dtype"] != np.uint8 or len(source["shape"]) != 4 or source["shape"][0] != 1:
        raise LiteRtError(
            f"{path}: the input is {source['dtype'].__name__} {source['shape'].tolist()}; one image of "
            "uint8, [1, height, width, 3], is expected"
        )
    numbers = tuple(target["index"] for target in targets)
    return Session(interpreter, source["index"], numbers, int(source["shape"][1]))
