"""An int8 TFLite file of a float variant by TinyNeuralNetwork, scored in LiteRT.

    PYTHON -m benchmarks.tinynn_file fp32 tinynn.tflite

PYTHON has TinyNeuralNetwork and `ai-edge-litert` beside the product's packages, as
`benchmarks/requirements.txt` says. Its int8 form is TFLite's, which `benchmarks.int8_peers` cannot take. It
is calibrated with the images of train that every tool gets there, and scored on the same images of test,
paired with the variant's ONNX file.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports]
from tinynn.converter import TFLiteConverter  # pyright: ignore[reportMissingImports]
from tinynn.graph.quantization.quantizer import PostQuantizer  # pyright: ignore[reportMissingImports]
from tinynn.graph.tracer import model_tracer  # pyright: ignore[reportMissingImports]

from benchmarks import side_by_side
from benchmarks.side_by_side import Answers
from pipeline import paths
from pipeline.data import batches, sampling, store
from pipeline.data.batches import ViewSet
from pipeline.models import storage
from pipeline.onnx.inference import open_classifier
from pipeline.process import one_line_errors
from pipeline.training import compute

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
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = storage.load(paths.model(arguments.variant))
    contract = model.card.input
    began = time.perf_counter()
    images = store.read_training_images(paths.DATA)
    chosen = sampling.choose(images, arguments.calibration, arguments.seed)
    views = ViewSet(images, None, contract)
    example = torch.zeros(1, 3, contract.size, contract.size)
    # Steps per channel: with one per tensor it is an older form of TFLite's int8.
    settings = {"asymmetric": True, "per_tensor": False}
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        with model_tracer():
            quantizer = PostQuantizer(model.module.eval(), example, work_dir=scratch, config=settings)
            network = quantizer.quantize().eval()
        for request in batches.sequential(chosen, None, contract.size, BATCH):
            network(contract.normalise(views[request].images))
        network = quantizer.convert(network)
        torch.backends.quantized.engine = quantizer.backend
        TFLiteConverter(
            network, example, tflite_path=str(arguments.target), quantize_target_type="int8"
        ).convert()
    seconds = time.perf_counter() - began
    reference = paths.onnx(arguments.variant)
    labels = open_classifier(reference, threads=1).labels
    test = ViewSet(side_by_side.spread(store.read(paths.DATA, "test"), arguments.images), None, contract)
    truth = np.array([labels.index(name) for name in test.images.classes])[test.images.labels]
    predictions = _predict(arguments.target, test)
    answers = side_by_side.answer({"reference": reference}, test, compute.usable_cores())
    row = side_by_side.accuracy(Answers(predictions, predictions == truth), answers["reference"])
    about = {"seconds": round(seconds, 1), "size_bytes": arguments.target.stat().st_size}
    print(json.dumps(about | row, indent=2))


def _predict(file: Path, test: ViewSet) -> np.ndarray:
    """The classes that a file with a normalised float input gives to images."""
    interpreter = Interpreter(str(file), num_threads=compute.usable_cores())
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
