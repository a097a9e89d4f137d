"""The command line: `python -m pipeline COMMAND`.

Commands import what they need when they run, so that those that need no PyTorch start at once.
"""

import argparse
import json
import os
import sys
from argparse import Namespace
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import paths
from pipeline.process import one_line_errors

if TYPE_CHECKING:
    from pipeline.selection.budget import Choice


def main() -> None:
    """Read the arguments and run one command."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description="Distil, compress and ship.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("choose", help="the variant that fits a budget best, and why")
    command.add_argument(
        "--max-drop", type=float, help="greatest loss of score against fp32, 0.01 is a point"
    )
    command.add_argument("--max-latency-ms", type=float, help="greatest median latency, as benchmarked")
    command.add_argument("--max-size-bytes", type=int, help="greatest size of the ONNX file")
    command.add_argument(
        "--experiments", action="store_true", help="among the variants of all of DVC's finished experiments"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=choose)

    command = commands.add_parser("predict", help="name what photographs show")
    command.add_argument("model", help="a variant of this pipeline, or an ONNX file")
    command.add_argument("images", nargs="+", help="image files, folders of them, or patterns")
    command.add_argument("--top", type=_positive, default=3, help="classes to name (default: %(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.set_defaults(run=predict)

    command = commands.add_parser("ship", help="write a variant with all that its users need into a folder")
    command.add_argument("model", metavar="variant", help="a variant of this pipeline, or an ONNX file")
    command.add_argument("folder", type=Path, help="a new folder")
    command.set_defaults(run=ship)

    command = commands.add_parser("demo", help="a page that runs all variants in the browser")
    command.add_argument("--port", type=int, default=8000, help="on 127.0.0.1 (default: %(default)s)")
    command.add_argument("--folder", type=Path, default=paths.DEMO, help="where it is written (%(default)s)")
    command.add_argument("--build", action="store_true", help="write it for another web server, and end")
    command.set_defaults(run=demo)

    command = commands.add_parser("fetch", help="bring the default data set to this machine")
    command.set_defaults(run=fetch)
    command = commands.add_parser("params", help="compose params.yaml from configs/")
    command.add_argument(
        "config", nargs="?", default="config", help="a file of configs/, without .yaml (default: %(default)s)"
    )
    command.set_defaults(run=compose)

    arguments = parser.parse_args()
    try:
        try:
            arguments.run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has enough, as `head` does. Python would flush once more at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _positive(word: str) -> int:
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"{word}: must be 1 or more")
    return int(word)


def choose(arguments: Namespace) -> None:
    """Print the variant that the budget picks, and why; the options go before `budget` in params.yaml."""
    from pipeline import parameters
    from pipeline.selection import budget
    from pipeline.selection.settings import BudgetSettings

    given = {name: getattr(arguments, name) for name in BudgetSettings.model_fields}
    changes = {"budget": {name: limit for name, limit in given.items() if limit is not None}}
    told: dict[str, Any] = {}
    with one_line_errors():
        limits = parameters.load(changes=changes).budget.model_dump()
        if arguments.experiments:
            choice, told = _among_experiments(limits)
        else:
            choice = budget.choose(budget.read(paths.VARIANTS), **limits)
    if arguments.json:
        print(json.dumps({**asdict(choice), "budget": limits, **told}, indent=2))
    elif choice.variant:
        # The name alone is what `$(python -m pipeline choose)` takes up.
        print(choice.reason, file=sys.stderr)
        print(choice.variant)
    else:
        print(f"error: {choice.reason}", file=sys.stderr)
    if not choice.variant:
        raise SystemExit(1)


def _among_experiments(limits: dict[str, Any]) -> "tuple[Choice, dict[str, Any]]":
    """The choice among all experiments; says beside it what sets the chosen one apart."""
    from pipeline.selection import budget, experiments

    found, unfinished = experiments.read()
    table = experiments.table(found)
    choice = budget.choose(table, **limits)
    chosen = next(row for row in table if row.variant == choice.closest)
    settings = experiments.differences(found)[chosen.experiment]
    print(
        f"{len(table)} variants of {len(found)} experiments ({unfinished} more are not finished); "
        "scores are on val\n"
        f"{chosen.variant}: {chosen.test:.2%} on test; "
        + " ".join(f"-S {key}={json.dumps(value)}".replace('"', "") for key, value in settings.items()),
        file=sys.stderr,
    )
    return choice, {"experiment": chosen.experiment, "settings": settings, "test": chosen.test}


def predict(arguments: Namespace) -> None:
    """Print the most probable classes of every image; those that cannot be read are named."""
    from pipeline.data import images
    from pipeline.onnx import inference

    files = list(images.find(arguments.images))
    width = max(len(str(file)) for file in files)
    rows: list[dict[str, Any]] = []
    failed = 0
    with one_line_errors():
        classifier = inference.open_classifier(_model(arguments.model), threads=0)
        for file in files:
            try:
                prediction = inference.predict(classifier, file, arguments.top)
            except inference.ImageFileError as error:
                print(f"error: {error}", file=sys.stderr)
                rows.append({"image": str(file), "error": str(error)})
                failed += 1
                continue
            rows.append({"image": str(file), "classes": [asdict(guess) for guess in prediction.guesses]})
            if not arguments.json:
                guesses = (f"{guess.probability:7.2%}  {guess.label}" for guess in prediction.guesses)
                print(f"{file!s:{width}}", *guesses, sep="  ")
    if arguments.json:
        print(json.dumps(rows, indent=2))
    if failed:
        print(f"error: {failed} of {len(files)} could not be read", file=sys.stderr)
        raise SystemExit(1)


def ship(arguments: Namespace) -> None:
    """Write the folder, and say what its user should know."""
    from pipeline.onnx import inference
    from pipeline.provenance import sha256
    from pipeline.selection import budget
    from pipeline.shipping import folder

    with one_line_errors():
        classifier = inference.open_classifier(_model(arguments.model), threads=1)
        table = budget.read(paths.VARIANTS) if paths.VARIANTS.exists() else []
        written = folder.ship(classifier, arguments.folder, paths.REPORT / folder.CARD)
    for file in written:
        print(f"{file.stat().st_size:12,}  {file}")
    digest = sha256(classifier.path)
    if folder.CARD not in {file.name for file in written}:
        print(
            f"note: {paths.REPORT / folder.CARD} does not exist, so there is no model card", file=sys.stderr
        )
    if digest not in {line.sha256 for line in table}:
        print(f"note: {paths.VARIANTS} has no figures of this file", file=sys.stderr)
    elif digest not in {line.sha256 for line in budget.accepted(table)}:
        print("note: the gate does not accept this variant and all its ancestors", file=sys.stderr)


def demo(arguments: Namespace) -> None:
    """Write the page, and serve it to this machine."""
    from pipeline import parameters
    from pipeline.onnx import inference
    from pipeline.selection import budget
    from pipeline.shipping import demo as page

    with one_line_errors():
        files = [paths.onnx(variant) for variant in parameters.load().variants]
        table = budget.read(paths.VARIANTS) if paths.VARIANTS.exists() else []
        classifiers = [inference.open_classifier(file, threads=1) for file in files]
        page.build(arguments.folder, classifiers, {line.sha256: line for line in table})
        if arguments.build:
            print(arguments.folder)
            return
        server = page.server(arguments.folder, arguments.port)
    print(f"http://{page.LOOPBACK}:{server.server_port}/  (Ctrl-C ends)", flush=True)
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()


def fetch(_: Namespace) -> None:
    """Bring Fashion-MNIST, if it is what the parameters ask for."""
    from pipeline import parameters
    from pipeline.data.fetch import fetch_fashion_mnist

    with one_line_errors():
        data = parameters.load().data
        if data.source == "fashion_mnist":
            fetch_fashion_mnist(data.path)


def compose(arguments: Namespace) -> None:
    """Write the composition of a file of `configs/` to `params.yaml`, as DVC's Hydra integration does."""
    from dvc.utils.hydra import compose_and_dump

    compose_and_dump(str(paths.PARAMETERS), str(paths.CONFIGS.resolve()), None, arguments.config, "", [])


def _model(name: str) -> Path:
    """The file of that name, or the ONNX file of a variant."""
    from pipeline.onnx.inference import ModelFileError

    if name.endswith(".onnx"):
        return Path(name)
    if not paths.onnx(name).is_file():
        there = ", ".join(sorted(file.stem for file in paths.ONNX.glob("*.onnx"))) or "none"
        raise ModelFileError(f"{name} is no variant in {paths.ONNX} (there: {there}) and no .onnx file")
    return paths.onnx(name)


if __name__ == "__main__":
    main()
