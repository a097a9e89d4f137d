"""The command `predict`."""

import json
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import paths
from pipeline.commands import models
from pipeline.escaping import for_terminal
from pipeline.running.process import one_line_errors


def run(arguments: Namespace) -> None:
    """Print the most probable classes of every image; name the images that cannot be read."""
    from pipeline.data import images
    from pipeline.onnx import inference

    right: dict[Path, tuple[str, ...]] = {}
    if arguments.images:
        files = list(
            images.find(arguments.images, lambda line: print(f"note: {for_terminal(line)}", file=sys.stderr))
        )
    else:
        with one_line_errors():
            right = {sample.file: sample.labels for sample in models.samples()}
            if not right:
                raise models.NoSamplesError(
                    f"name some images; samples are drawn from {paths.DATA}, which does not exist"
                )
        files = list(right)
    width = max(len(for_terminal(file)) for file in files)
    rows: list[dict[str, Any]] = []
    failed = 0
    with one_line_errors():
        classifier = models.opened(arguments.model, threads=0)
        for file in files:
            try:
                prediction = inference.predict(classifier, file, arguments.top)
            except images.ImageFileError as error:
                print(f"error: {for_terminal(error)}", file=sys.stderr)
                rows.append({"image": str(file), "error": str(error)})
                failed += 1
                continue
            truth = {"right": right[file]} if right else {}
            classes = [asdict(guess) for guess in prediction.guesses]
            rows.append({"image": str(file), **truth, "classes": classes})
            if not arguments.json:
                guesses = (
                    f"{guess.probability:7.2%}  {for_terminal(guess.label)}" for guess in prediction.guesses
                )
                answer = f"  (right: {for_terminal(', '.join(right[file])) or 'none'})" if right else ""
                print(f"{for_terminal(file):{width}}", *guesses, sep="  ", end=f"{answer}\n")
    if arguments.json:
        print(json.dumps(rows, indent=2))
    if failed:
        print(f"error: {failed} of {len(files)} images could not be read", file=sys.stderr)
        raise SystemExit(1)
