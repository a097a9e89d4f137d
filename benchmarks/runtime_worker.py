"""One runtime in a process of its own: it opens files, answers images and measures itself, as it is asked.

`benchmarks/runtimes.py` starts it and writes one JSON object per line to its standard input. Only one runtime
is imported; for those that read neither ONNX nor TFLite files, a file is made from the variant.
"""

import importlib.metadata
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import paths

REPEATS = 5
"""Number of images that are answered one after another for one timing, of which the median counts."""
Infer = Callable[[np.ndarray], np.ndarray]
"""Function from images of bytes, of the shape [1, height, width, 3], to logits."""


class Opened(NamedTuple):
    """A variant in a runtime."""

    infer: Infer
    size: int
    """Number of bytes of its files."""


def onnxruntime(variant: str, _folder: Path, threads: int) -> Opened:
    """The shipped file as the pipeline opens it."""
    from pipeline.onnx.sessions import open_session

    session = open_session(paths.onnx(variant), threads=threads)
    name = session.get_inputs()[0].name
    size = paths.onnx(variant).stat().st_size
    return Opened(lambda images: np.asarray(session.run(None, {name: images})[0]), size)


def openvino(variant: str, _folder: Path, threads: int) -> Opened:
    """The shipped ONNX file, in 32 bits where it is not in eight."""
    import openvino  # pyright: ignore[reportMissingImports]

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model = openvino.Core().compile_model(str(paths.onnx(variant)), "CPU", settings)
    request = model.create_infer_request()
    return Opened(lambda images: request.infer({0: images})[0], paths.onnx(variant).stat().st_size)


def litert(variant: str, _folder: Path, threads: int) -> Opened:
    """The file that the stage `litert` has written."""
    from ai_edge_litert.interpreter import Interpreter

    file = paths.ARTIFACTS / "litert" / f"{variant}.tflite"
    interpreter = Interpreter(str(file), num_threads=threads)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()

    def infer(images: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(source["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(target["index"])

    return Opened(infer, file.stat().st_size)


def executorch(variant: str, folder: Path, threads: int) -> Opened:
    """A program for the XNNPACK delegate, made from the variant with its own integers."""
    import torch
    from executorch.runtime import Runtime  # pyright: ignore[reportMissingImports]

    from benchmarks import executorch_file

    file = folder / f"{variant}.pte"
    if not file.is_file():
        executorch_file.write(paths.model(variant), file)
    torch.set_num_threads(threads)
    program = Runtime.get().load_program(str(file))
    method = program.load_method("forward")
    return Opened(
        lambda images: method.execute([torch.from_numpy(images)])[0].numpy(),
        file.stat().st_size,
    )


def ncnn(variant: str, folder: Path, threads: int) -> Opened:
    """Parameters and weights that pnnx makes from the folded network; it has no form for given integers."""
    import ncnn  # pyright: ignore[reportMissingImports]

    from pipeline.models import storage

    model = storage.load(paths.model(variant))
    if model.quantization is not None:
        raise ValueError("ncnn reads no network with given integers: its int8 has scales of its own tools")
    contract = model.card.input
    place = folder / "ncnn" / variant / "network"
    if not place.with_suffix(".ncnn.param").is_file():
        import pnnx  # pyright: ignore[reportMissingImports]
        import torch

        from pipeline.models.folding import fold_batch_norm

        place.parent.mkdir(parents=True, exist_ok=True)
        example = torch.rand(1, 3, contract.size, contract.size)
        module = fold_batch_norm(model).module.eval()
        pnnx.export(module, str(place.with_suffix(".pt")), (example,), fp16=False)
    network = ncnn.Net()
    network.opt.num_threads = threads
    network.opt.use_fp16_packed = network.opt.use_fp16_storage = network.opt.use_fp16_arithmetic = False
    network.load_param(str(place.with_suffix(".ncnn.param")))
    network.load_model(str(place.with_suffix(".ncnn.bin")))
    mean = [255 * value for value in contract.mean]
    scale = [1 / (255 * value) for value in contract.std]

    def infer(images: np.ndarray) -> np.ndarray:
        pixels = ncnn.Mat.from_pixels(images[0], ncnn.Mat.PixelType.PIXEL_RGB, contract.size, contract.size)
        pixels.substract_mean_normalize(mean, scale)
        extractor = network.create_extractor()
        extractor.input("in0", pixels)
        return np.array(extractor.extract("out0")[1])[None]

    size = sum(place.with_suffix(f".ncnn.{part}").stat().st_size for part in ("param", "bin"))
    return Opened(infer, size)


OPENERS = {one.__name__: one for one in (executorch, litert, ncnn, onnxruntime, openvino)}
PACKAGES = {"litert": "ai-edge-litert"}
"""Name of a runtime's package where it has another name."""


def main(runtime: str, folder: Path, threads: int) -> None:
    """Answer questions until standard input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a runtime prints is no reply
    images = np.load(folder / "images.npy", mmap_mode="r")
    variants: dict[str, Opened] = {}
    for line in sys.stdin:
        question = json.loads(line)
        try:
            reply = _reply(question, variants, images, runtime, folder, threads)
        except Exception as error:  # whatever a foreign runtime raises is its row of the table
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        print(json.dumps(reply), file=replies, flush=True)


def _reply(
    question: dict[str, Any],
    variants: dict[str, Opened],
    images: np.ndarray,
    runtime: str,
    folder: Path,
    threads: int,
) -> dict[str, Any]:
    if "open" in question:
        reasons = {}
        for variant in question["open"]:
            try:
                variants[variant] = OPENERS[runtime](variant, folder, threads)
            except Exception as error:
                reasons[variant] = " ".join(str(error).split())[:200]
        version = importlib.metadata.version(PACKAGES.get(runtime, runtime))
        sizes = {variant: opened.size for variant, opened in variants.items()}
        return {"version": version, "sizes": sizes, "reasons": reasons}
    if "answer" in question:
        infer = variants[question["answer"]].infer
        logits = np.concatenate([np.array(infer(images[i : i + 1])) for i in range(len(images))])
        name = f"{runtime}-{question['answer']}.npy"
        np.save(folder / name, logits)
        return {"file": name}
    infer, seconds = variants[question["time"]].infer, []
    for number in range(REPEATS):
        image = np.array(images[number : number + 1])
        start = time.perf_counter()
        infer(image)
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds)}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
