"""An int8 TFLite file of a float variant by TinyNeuralNetwork, scored in LiteRT.

    PYTHON -m benchmarks.tinynn_file fp32 tinynn.tflite

PYTHON has TinyNeuralNetwork beside the product's packages, as `benchmarks/requirements.txt` says. Its int8
form is TFLite's, which `benchmarks.int8_peers` cannot take. It is calibrated with the images of train that
every tool gets there, and scored on the same images of test, paired with the variant's ONNX file.
"""

import argparse
import importlib.metadata
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import nn

from benchmarks import side_by_side
from benchmarks.side_by_side import Answers
from pipeline import paths
from pipeline.data import batches, sampling, store
from pipeline.data.batches import ViewSet
from pipeline.models import storage
from pipeline.onnx.inference import open_classifier
from pipeline.running import affinity
from pipeline.running.process import one_line_errors

BATCH = 32


def main() -> None:
    """Write the file and score it; print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variant")
    parser.add_argument("target", type=Path)
    parser.add_argument("--calibration", type=int, default=512, help="images of train (default: %(default)s)")
    parser.add_argument("--images", type=int, help="of test (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the calibration images")
    arguments = parser.parse_args()
    model = storage.load(paths.model(arguments.variant))
    contract = model.card.input
    images = store.read_training_images(paths.DATA)
    chosen = sampling.choose(images, arguments.calibration, arguments.seed)
    views = ViewSet(images, None, contract)
    requests = batches.sequential(chosen, None, contract.size, BATCH)
    began = time.perf_counter()
    convert(
        model.module.eval(),
        [contract.normalise(views[request].images) for request in requests],
        arguments.target,
    )
    seconds = time.perf_counter() - began
    reference = paths.onnx(arguments.variant)
    test = ViewSet(side_by_side.spread(store.read(paths.DATA, "test"), arguments.images), None, contract)
    labels = open_classifier(reference, threads=1).labels
    truth = np.array([labels.index(name) for name in test.images.classes])[test.images.labels]
    predictions = _predict(arguments.target, test)
    answers = side_by_side.answer({"reference": reference}, test, affinity.physical_cores())
    about = {
        "version": importlib.metadata.version("TinyNeuralNetwork"),
        "calibration": len(chosen),
        "seconds": round(seconds, 1),
        "size_bytes": arguments.target.stat().st_size,
    }
    row = side_by_side.accuracy(Answers(predictions, predictions == truth), answers["reference"])
    print(json.dumps(about | row, indent=2))


def convert(module: nn.Module, batches: list[torch.Tensor], target: Path) -> None:
    """Quantise a network with normalised images, and write it as a TFLite file."""
    from tinynn.converter import TFLiteConverter  # pyright: ignore[reportMissingImports]
    from tinynn.graph.quantization.quantizer import PostQuantizer  # pyright: ignore[reportMissingImports]
    from tinynn.graph.tracer import model_tracer  # pyright: ignore[reportMissingImports]

    example = torch.zeros_like(batches[0][:1])
    # Steps per channel: with one per tensor it is an older form of TFLite's int8.
    settings = {"asymmetric": True, "per_tensor": False}
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        with model_tracer():
            quantizer = PostQuantizer(module, example, work_dir=scratch, config=settings)
            network = quantizer.quantize().eval()
        for batch in batches:
            network(batch)
        network = quantizer.convert(network)
        torch.backends.quantized.engine = quantizer.backend
        TFLiteConverter(network, example, tflite_path=str(target), quantize_target_type="int8").convert()


def _predict(file: Path, test: ViewSet) -> np.ndarray:
    """The classes that a file with a normalised float input gives to images."""
    interpreter = Interpreter(str(file), num_threads=affinity.physical_cores())
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    predictions = []
    for request in batches.sequential(range(len(test)), None, test.contract.size, 1):
        image = test.contract.normalise(test[request].images).permute(0, 2, 3, 1)
        interpreter.set_tensor(source["index"], image.contiguous().numpy())
        interpreter.invoke()
        predictions.append(int(interpreter.get_tensor(target["index"])[0].argmax()))
    return np.array(predictions)


if __name__ == "__main__":
    with one_line_errors():
        main()
