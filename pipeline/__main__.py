"""The command line: `python -m pipeline COMMAND`."""

import argparse
import json
from pathlib import Path

from pipeline import paths
from pipeline.process import one_line_errors


def main() -> None:
    """Read the arguments and run one command."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    classify = commands.add_parser("predict", help="name what photographs show")
    classify.add_argument("model", type=Path, help="an ONNX file of this pipeline")
    classify.add_argument("images", type=Path, nargs="+", help="image files")
    classify.add_argument("--top", type=int, default=3, help="classes to name (default: %(default)s)")
    classify.add_argument("--json", action="store_true", help="print JSON instead of a table")
    commands.add_parser("fetch", help="bring the default data set to this machine")
    commands.add_parser("params", help="compose params.yaml from configs/")
    arguments = parser.parse_args()
    if arguments.command == "predict":
        predict(arguments.model, arguments.images, arguments.top, arguments.json)
    elif arguments.command == "fetch":
        fetch()
    else:
        compose()


def predict(model: Path, images: list[Path], top: int, as_json: bool) -> None:
    """Print the most probable classes of every image."""
    from pipeline import inference

    with one_line_errors(inference.ModelFileError, inference.ImageFileError):
        predictions = inference.predict(model, images, top)
    if as_json:
        rows = [
            {
                "image": str(prediction.image),
                "classes": [{"label": g.label, "probability": g.probability} for g in prediction.guesses],
            }
            for prediction in predictions
        ]
        print(json.dumps(rows, indent=2))
        return
    for prediction in predictions:
        print(prediction.image)
        for guess in prediction.guesses:
            print(f"  {guess.probability:7.2%}  {guess.label}")


def fetch() -> None:
    """Bring Fashion-MNIST, if it is what the parameters ask for."""
    from pipeline import parameters
    from pipeline.data.fetch import fetch_fashion_mnist
    from pipeline.data.sources import SourceError

    with one_line_errors(parameters.ParameterError, SourceError):
        data = parameters.load().data
        if data.source == "fashion_mnist":
            fetch_fashion_mnist(data.path)


def compose() -> None:
    """Write the composed default of `configs/` to `params.yaml`, as DVC's Hydra integration does."""
    from dvc.utils.hydra import compose_and_dump

    compose_and_dump(str(paths.PARAMETERS), str(paths.CONFIGS.resolve()), None, "config", "", [])


if __name__ == "__main__":
    main()
