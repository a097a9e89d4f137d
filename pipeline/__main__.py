"""The command line: `python -m pipeline COMMAND`.

Commands import what they need when they run, so that those that need no PyTorch start at once.
"""

import argparse
import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import paths
from pipeline.escaping import for_terminal
from pipeline.process import one_line_errors

if TYPE_CHECKING:
    from pipeline.selection.budget import Choice


def main() -> None:
    """Read the arguments and run one command."""
    parser = ArgumentParser(
        prog="python -m pipeline",
        description="Choose, use and ship the image classifiers that `dvc repro` has made.",
        epilog="`python -m pipeline COMMAND --help` describes a command and shows an example.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    def add(name: str, run: Callable[[Namespace], None], summary: str, example: str) -> ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n{example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        return command

    command = add(
        "choose",
        choose,
        "print the variant that fits a budget best, and the reason",
        "  python -m pipeline choose --max-latency-ms 2 --max-size-bytes 2000000",
    )
    command.add_argument(
        "--max-drop", type=float, help="greatest loss of score against fp32; 0.01 is one percentage point"
    )
    command.add_argument("--max-latency-ms", type=float, help="greatest median latency in milliseconds")
    command.add_argument("--max-size-bytes", type=int, help="greatest size of the ONNX file in bytes")
    command.add_argument(
        "--experiments", action="store_true", help="choose among the variants of all finished DVC experiments"
    )
    command.add_argument("--json", action="store_true", help="print JSON")

    command = add(
        "predict",
        predict,
        "classify images with a variant or an ONNX file",
        "  python -m pipeline predict int8-qat photo.jpg photos/ --top 1",
    )
    command.add_argument("model", help="name of a variant, or path of an ONNX file")
    command.add_argument("images", nargs="+", help="image files, folders of images, or patterns")
    command.add_argument(
        "--top", type=_positive, default=3, help="number of classes to print per image (default: %(default)s)"
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")

    command = add(
        "ship",
        ship,
        "write a folder with a variant and everything that its users need",
        "  python -m pipeline ship int8-qat shipped/int8-qat",
    )
    command.add_argument("model", help="name of a variant, or path of an ONNX file")
    command.add_argument("folder", type=Path, help="a folder that does not exist or is empty")

    command = add(
        "demo",
        demo,
        "serve a web page that runs all variants in the browser",
        "  python -m pipeline demo --port 8000",
    )
    command.add_argument("--port", type=int, default=8000, help="port on 127.0.0.1 (default: %(default)s)")
    command.add_argument(
        "--folder", type=Path, default=paths.DEMO, help="folder of the page (default: %(default)s)"
    )
    command.add_argument(
        "--build", action="store_true", help="only write the page, to be served by another web server"
    )

    command = add(
        "measured",
        measured,
        "list what was measured on this machine, and what was chosen by it",
        "  python -m pipeline measured --forget && dvc repro --single-item --force build@pruned-50",
    )
    command.add_argument(
        "--forget", action="store_true", help="remove it, so that the next stage that needs it measures anew"
    )
    add(
        "fetch",
        fetch,
        "download the default data set",
        "  python -m pipeline fetch",
    )
    command = add(
        "params",
        compose,
        "write params.yaml, composed from configs/, with changes",
        "  python -m pipeline params data=folder data.path='My photos [2024]/é' && dvc repro",
    )
    command.add_argument(
        "changes",
        nargs="*",
        metavar="CONFIG | GROUP=NAME | KEY=VALUE",
        help="a file of configs/ without .yaml (default: config), other files of its groups, and values; "
        "a text or path is taken as it stands, whatever characters it has",
    )

    add(
        "save",
        save,
        "put results that DVC's cache lacks into it, after its disk was full",
        "  python -m pipeline save",
    )
    command = add(
        "tidy",
        tidy,
        "remove what killed runs and earlier states have left on the disk",
        "  python -m pipeline tidy --dry-run",
    )
    command.add_argument(
        "--dry-run", action="store_true", help="only list what would be removed, and what stays"
    )

    arguments = parser.parse_args()
    try:
        try:
            arguments.run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe, as `head` does. Python would flush again at exit and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def choose(arguments: Namespace) -> None:
    """Print the variant that fits the budget best; options take precedence over `budget` in params.yaml."""
    from pipeline import parameters
    from pipeline.selection import budget, table
    from pipeline.selection.settings import BudgetSettings

    options = {name: getattr(arguments, name) for name in BudgetSettings.model_fields}
    changes = {"budget": {name: limit for name, limit in options.items() if limit is not None}}
    details: dict[str, Any] = {}
    with one_line_errors():
        p = parameters.load(changes=changes)
        limits = p.budget.model_dump()
        if arguments.experiments:
            choice, details = _choose_among_experiments(limits)
        else:
            choice = budget.choose(
                table.read(paths.VARIANTS), **limits, gate_max_drop=p.gate.distill.max_drop
            )
    if arguments.json:
        print(json.dumps({**asdict(choice), "budget": limits, **details}, indent=2))
    elif choice.variant:
        # Only the name goes to standard output, for `$(python -m pipeline choose)`.
        print(choice.reason, file=sys.stderr)
        print(choice.variant)
    else:
        print(f"error: {choice.reason}", file=sys.stderr)
    if not choice.variant:
        raise SystemExit(1)


def _choose_among_experiments(limits: dict[str, Any]) -> "tuple[Choice, dict[str, Any]]":
    """Choose among all experiments; print and return the settings in which the chosen one differs."""
    from pipeline.selection import budget, experiments

    finished, unfinished = experiments.read()
    results = experiments.collect(finished)
    choice = budget.choose(results, **limits)
    result = next(result for result in results if result.variant == choice.closest)
    settings = experiments.differences(finished)[result.experiment]
    options = [f"-S {key}={json.dumps(value)}".replace('"', "") for key, value in settings.items()]
    print(
        f"{len(results)} variants of {len(finished)} experiments, scored on the validation split "
        f"({unfinished} experiments are not finished)\n"
        f"{result.variant}: {result.test_score:.2%} on the test split; {' '.join(options)}",
        file=sys.stderr,
    )
    return choice, {"experiment": result.experiment, "settings": settings, "test": result.test_score}


def predict(arguments: Namespace) -> None:
    """Print the most probable classes of every image; name the images that cannot be read."""
    from pipeline.data import images
    from pipeline.onnx import inference

    files = list(
        images.find(arguments.images, lambda line: print(f"note: {for_terminal(line)}", file=sys.stderr))
    )
    width = max(len(for_terminal(file)) for file in files)
    rows: list[dict[str, Any]] = []
    failed = 0
    with one_line_errors():
        classifier = inference.open_classifier(_model(arguments.model), threads=0)
        for file in files:
            try:
                prediction = inference.predict(classifier, file, arguments.top)
            except images.ImageFileError as error:
                print(f"error: {for_terminal(error)}", file=sys.stderr)
                rows.append({"image": str(file), "error": str(error)})
                failed += 1
                continue
            rows.append({"image": str(file), "classes": [asdict(guess) for guess in prediction.guesses]})
            if not arguments.json:
                guesses = (
                    f"{guess.probability:7.2%}  {for_terminal(guess.label)}" for guess in prediction.guesses
                )
                print(f"{for_terminal(file):{width}}", *guesses, sep="  ")
    if arguments.json:
        print(json.dumps(rows, indent=2))
    if failed:
        print(f"error: {failed} of {len(files)} images could not be read", file=sys.stderr)
        raise SystemExit(1)


def ship(arguments: Namespace) -> None:
    """Write the folder, and print what its users should know."""
    from pipeline.onnx import inference
    from pipeline.provenance import sha256
    from pipeline.selection import budget, table
    from pipeline.shipping import folder

    with one_line_errors():
        classifier = inference.open_classifier(_model(arguments.model), threads=1)
        rows = table.read(paths.VARIANTS) if paths.VARIANTS.exists() else []
        written = folder.ship(classifier, arguments.folder, paths.REPORT / folder.CARD)
    for file in written:
        print(f"{file.stat().st_size:12,}  {file}")
    digest = sha256(classifier.path)
    if folder.CARD not in {file.name for file in written}:
        print(
            f"note: the folder has no model card, because {paths.REPORT / folder.CARD} does not exist",
            file=sys.stderr,
        )
    if digest not in {row.sha256 for row in rows}:
        print(f"note: {paths.VARIANTS} has no results for this file", file=sys.stderr)
    elif digest not in {row.sha256 for row in budget.accepted(rows)}:
        print("note: the gate rejects this variant or one of its ancestors", file=sys.stderr)


def demo(arguments: Namespace) -> None:
    """Write the page, and serve it to this machine only."""
    from pipeline import parameters
    from pipeline.onnx import inference
    from pipeline.selection import table
    from pipeline.shipping import demo as page

    with one_line_errors():
        # The port comes first: if it is taken, the folder may be the one that is served there.
        server = None if arguments.build else page.server(arguments.folder, arguments.port)
        files = [paths.onnx(variant) for variant in parameters.load().variants]
        rows = table.read(paths.VARIANTS) if paths.VARIANTS.exists() else []
        classifiers = [inference.open_classifier(file, threads=1) for file in files]
        page.build(arguments.folder, classifiers, {row.sha256: row for row in rows})
    if server is None:
        print(arguments.folder)
        return
    print(f"http://{page.LOOPBACK}:{server.server_port}/  (press Ctrl-C to stop)", flush=True)
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()


def measured(arguments: Namespace) -> None:
    """Print the files with their entries, and the reasons of the choices; remove them if asked to."""
    files = [paths.kernels(), paths.precision_trials(), *sorted(paths.choices().glob("*.json"))]
    for file in files:
        with suppress(FileNotFoundError):
            print(f"{file}: {_summary(file)}")
            if arguments.forget:
                file.unlink()
    if arguments.forget:
        print("removed; a stage that is finished runs again with `dvc repro --single-item --force STAGE`")


def _summary(file: Path) -> str:
    """A choice's answer and reason, or the number of measurements of a table."""
    try:
        content = json.loads(file.read_bytes())
        if "reason" not in content:
            values = [value if isinstance(value, dict) else {0: value} for value in content.values()]
            return f"{sum(map(len, values))} measurements"
        if "layers" in content:
            return f"float layers: {', '.join(content['layers']) or 'none'}; {content['reason']}"
        plan = content["plans"][0]
        return f"criterion {plan['criterion']}, shape {plan['shape']}; {content['reason']}"
    except (ValueError, TypeError, AttributeError, LookupError):
        return "damaged"


def fetch(_: Namespace) -> None:
    """Download Fashion-MNIST if the parameters use it."""
    from pipeline import parameters
    from pipeline.data.fetch import fetch_fashion_mnist

    with one_line_errors():
        data = parameters.load().data
        if data.source == "fashion_mnist":
            fetch_fashion_mnist(data.path)


def compose(arguments: Namespace) -> None:
    """Write the composition of a file of `configs/` to `params.yaml`, as DVC's Hydra integration does."""
    from pipeline.parameters import composition

    with one_line_errors():
        composition.write(arguments.changes)


def save(_: Namespace) -> None:
    """Complete DVC's cache; say whether it is worth while to tidy up."""
    from pipeline import parameters
    from pipeline.upkeep import dvc_cache, tidying

    with one_line_errors():
        for path in dvc_cache.save():
            print(f"{path} is in DVC's cache now, which had no room for it")
        if advice := tidying.advice(parameters.load().variants):
            print(advice)


def tidy(arguments: Namespace) -> None:
    """List what can be removed with its size and reason, and what stays; remove it unless it is a trial."""
    from pipeline import parameters
    from pipeline.upkeep import tidying

    with one_line_errors():
        tidying.tidy(parameters.load().variants, dry_run=arguments.dry_run)


def _model(name: str) -> Path:
    """Path of an ONNX file that is given by its path or by the name of a variant."""
    from pipeline.onnx.inference import ModelFileError

    if name.endswith(".onnx"):
        return Path(name)
    if not paths.onnx(name).is_file():
        variants = (
            ", ".join(sorted(file.stem for file in paths.ONNX.glob("*.onnx"))) or f"none in {paths.ONNX}"
        )
        raise ModelFileError(f"{name!r} is neither a variant ({variants}) nor an .onnx file")
    return paths.onnx(name)


if __name__ == "__main__":
    main()
