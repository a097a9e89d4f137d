"""A TFLite file of ImageNet's classes in LiteRT, on the test images that `benchmarks.int8_peers` scores.

    PYTHON -m benchmarks.litert_file mobilenet_v1_0.75_192_quant.tflite --reference artifacts/onnx/fp32.onnx

PYTHON has `ai-edge-litert` beside the product's packages. The images are those of the prepared data in
artifacts/, whose classes are named by WordNet ids, rendered as the reference file's contract says. A file of
1,001 classes has a background class in front.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from benchmarks import side_by_side
from benchmarks.side_by_side import Answers
from pipeline import paths
from pipeline.data import store
from pipeline.data.batches import Request, ViewSet
from pipeline.onnx.inference import open_classifier
from pipeline.process import one_line_errors
from pipeline.training import compute


def main() -> None:
    """Score the file and the reference on the same images, and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--reference", type=Path, default=paths.onnx("fp32"))
    arguments = parser.parse_args()
    classifier = open_classifier(arguments.reference, threads=1)
    test = ViewSet(store.read(paths.DATA, "test"), None, classifier.contract)
    answers = side_by_side.answer({"reference": arguments.reference}, test, compute.usable_cores())
    truth = np.array([classifier.labels.index(name) for name in test.images.classes])[test.images.labels]
    predictions = _answer(arguments.file, test, len(classifier.labels))
    own = Answers(predictions, predictions == truth)
    print(json.dumps(side_by_side.accuracy(own, answers["reference"]), indent=2))


def _answer(file: Path, test: ViewSet, classes: int) -> np.ndarray:
    interpreter = Interpreter(str(file), num_threads=compute.usable_cores())
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    if source["dtype"] != np.uint8:
        raise ValueError(f"{file}: the input is {source['dtype'].__name__}; uint8 is expected")
    predictions = []
    for index in tqdm(range(len(test)), unit=" images", mininterval=5):
        pixels = test[Request([index], None, test.contract.size)].images.numpy()
        interpreter.set_tensor(source["index"], pixels)
        interpreter.invoke()
        logits = interpreter.get_tensor(target["index"])[0]
        predictions.append(int(logits[len(logits) - classes :].argmax()))
    return np.array(predictions)


if __name__ == "__main__":
    with one_line_errors():
        main()
