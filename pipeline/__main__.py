"""The command line: `python -m pipeline COMMAND`.

The commands themselves are in `pipeline/commands/`, one module each.
"""

import argparse
import math
import os
import re
import sys
import tomllib
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pipeline import paths
from pipeline.commands import (
    choose,
    compress,
    demo,
    experiments,
    fetch,
    measured,
    params,
    predict,
    push,
    run,
    save,
    ship,
    tidy,
)
from pipeline.errors import did_you_mean
from pipeline.running import process


def main() -> None:
    """Read the arguments and run one command."""
    process.replace_closed_streams()
    parser = Parser(
        prog="python -m pipeline",
        description="Choose, use and ship the image classifiers that `dvc repro` has made.",
        epilog="example:\n  python -m pipeline choose --max-drop 0.01\n\n"
        "`python -m pipeline COMMAND --help` describes a command and shows an example; `make help` lists\n"
        "what makes the variants, and `python -m pipeline.stages.STAGE --help` describes a stage.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the version and the commit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    def add(name: str, run: Callable[[Namespace], None], summary: str, example: str) -> "Parser":
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n{example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run, parser=command)
        return command

    command = add(
        "run",
        run.run,
        "plan the pipeline for a folder of your images, within a time, and run it",
        "  python -m pipeline run photos --minutes 20\n"
        "  python -m pipeline run photos --minutes 20 student.size=128 data.license=CC0-1.0\n"
        "  python -m pipeline run     goes on with configs/run.yaml as it is",
    )
    command.add_argument(
        "folder", nargs="?", type=Path, help="folder of class folders, or of a table and images"
    )
    command.add_argument(
        "changes",
        nargs="*",
        default=[],
        metavar="GROUP=NAME | KEY=VALUE",
        help="members of groups in configs/ and values, which take precedence over the plan",
    )
    command.add_argument(
        "--minutes",
        type=_minutes,
        default=run.MINUTES,
        help="time for all stages on this machine (default: %(default)g)",
    )
    command.add_argument(
        "--start",
        metavar="FOLDER",
        help="initial weights of the student: a folder or hub id of Hugging Face, or `random` "
        "(default: published ones where they can be had)",
    )
    command.add_argument("--plan", action="store_true", help="only write the plan")
    command.add_argument("--anew", action="store_true", help="plan anew what was planned before")
    command.add_argument("--planned", action="store_true", help=argparse.SUPPRESS)

    command = add(
        "compress",
        compress.run,
        "compress a trained MobileNetV1 without training it, and compare the files",
        "  python -m pipeline compress model.pth photos\n"
        "  python -m pipeline compress ../other/artifacts/models/fp32 photos data.splits=new\n"
        "  python -m pipeline compress model.safetensors photos 'teacher.labels=[cat,dog]'",
    )
    command.add_argument(
        "checkpoint",
        help="a state dict (.pth, .safetensors), a folder or hub id of Hugging Face, or the folder of a "
        "student of an earlier run, such as artifacts/models/fp32",
    )
    command.add_argument(
        "folder", type=Path, help="folder of labelled images that the network was not trained on"
    )
    command.add_argument(
        "changes",
        nargs="*",
        default=[],
        metavar="GROUP=NAME | KEY=VALUE",
        help="members of groups in configs/ and values, which take precedence over the plan",
    )
    command.add_argument("--plan", action="store_true", help="only write the plan")
    command.add_argument("--anew", action="store_true", help="plan anew what was planned before")

    command = add(
        "choose",
        choose.run,
        "print the variant that fits a budget best, and the reason",
        "  python -m pipeline choose --max-drop 0.01\n"
        "  python -m pipeline choose --prefer accuracy --max-latency-ms 2 --max-size-bytes 2000000",
    )
    command.add_argument(
        "--prefer",
        choices=("speed", "accuracy"),
        help="what ranks the variants: the fastest first, or those not shown to be worse than fp32 first",
    )
    command.add_argument(
        "--max-drop",
        type=float,
        help="greatest loss of score against fp32, shown by its interval; 0.01 is one percentage point",
    )
    command.add_argument("--max-latency-ms", type=float, help="greatest median latency in milliseconds")
    command.add_argument(
        "--max-size-bytes",
        type=_bytes,
        help="greatest size of the ONNX file in bytes, such as 2000000 or 2MB",
    )
    command.add_argument(
        "--experiments",
        action="store_true",
        help="choose among the variants of all finished DVC experiments on the same images",
    )
    command.add_argument("--json", action="store_true", help="print JSON")

    add(
        "experiments",
        experiments.run,
        "print a table of all finished DVC experiments",
        "  python -m pipeline experiments    # after `dvc exp run -S distill.epochs=6`",
    )

    command = add(
        "predict",
        predict.run,
        "classify images with a variant or an ONNX file",
        "  python -m pipeline predict int8-qat photo.jpg photos/ --top 1",
    )
    command.add_argument("model", help="name of a variant, or path of an ONNX file")
    command.add_argument(
        "images",
        nargs="*",
        default=[],
        help="image files, folders of images, or patterns; without any, a few photographs of the test split",
    )
    command.add_argument(
        "--top", type=_positive, default=3, help="number of classes to print per image (default: %(default)s)"
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")

    command = add(
        "ship",
        ship.run,
        "write a folder with a variant and everything that its users need",
        "  python -m pipeline ship int8-qat shipped/int8-qat",
    )
    command.add_argument("model", help="name of a variant, or path of an ONNX file")
    command.add_argument("folder", type=Path, help="a folder that does not exist or is empty")
    command.add_argument(
        "--mobile", action="store_true", help="also write it for one image, as .onnx and in ORT format"
    )

    command = add(
        "push",
        push.run,
        "upload what ship writes, and weights for transformers, to Hugging Face's hub",
        "  python -m pipeline push fp32 me/clothes --dry-run\n"
        "  HF_TOKEN=... python -m pipeline push fp32 me/clothes --private",
    )
    command.add_argument("model", help="name of a variant, or path of an ONNX file")
    command.add_argument("repository", help="OWNER/NAME on the hub, created if it does not exist")
    command.add_argument("--dry-run", action="store_true", help="only list what would be uploaded")
    command.add_argument("--private", action="store_true", help="let only the owner read the repository")

    command = add(
        "demo",
        demo.run,
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
        measured.run,
        "list what was measured on this machine, and what was chosen by it",
        "  python -m pipeline measured --forget && dvc repro --single-item --force build@pruned-50",
    )
    command.add_argument(
        "--forget", action="store_true", help="remove it, so that the next stage that needs it measures anew"
    )
    add(
        "fetch",
        fetch.run,
        "download the images that params.yaml names, if they are not there",
        "  python -m pipeline fetch",
    )
    command = add(
        "params",
        params.run,
        "write params.yaml, composed from configs/, with changes",
        "  python -m pipeline params data=folder data.path='My photos [2024]/é' && dvc repro",
    )
    command.add_argument(
        "changes",
        nargs="*",
        default=[],
        metavar="CONFIG | GROUP=NAME | KEY=VALUE",
        help="a file of configs/ without .yaml (default: config), other files of its groups, and values; "
        "a text or path is taken as it stands, whatever characters it has",
    )

    add(
        "save",
        save.run,
        "put results that DVC's cache lacks into it, after its disk was full",
        "  python -m pipeline save",
    )
    command = add(
        "tidy",
        tidy.run,
        "remove what killed runs and earlier states have left on the disk",
        "  python -m pipeline tidy --dry-run",
    )
    command.add_argument(
        "--dry-run", action="store_true", help="only list what would be removed, and what stays"
    )

    if any(not word.strip() for word in sys.argv[1:]):
        parser.error("an argument is empty; is a variable of the shell not set?")
    try:
        arguments, rest = parser.parse_known_args()
        # argparse takes the last arguments of a command before its options or after them, but not both.
        several = next((key for key in ("changes", "images") if hasattr(arguments, key)), None)
        if rest and (several is None or any(word.startswith("-") for word in rest)):
            arguments.parser.refuse(rest)
        if rest:
            setattr(arguments, several or "", [*getattr(arguments, several or ""), *rest])
        try:
            arguments.run(arguments)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        process.end_interrupted()
    except BrokenPipeError:
        # The reader has closed the pipe, as `head` does. Python would flush again at exit and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 1 <= minutes <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of minutes from 1 to 100,000")
    return minutes


class Parser(ArgumentParser):
    """A parser that names the option that was probably meant."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.options: list[str] = []
        super().__init__(*arguments, **settings)

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """Add an argument, and note its name if it is an option that the help shows."""
        if settings.get("help") != argparse.SUPPRESS:
            self.options += [name for name in names if str(name).startswith("--")]
        return super().add_argument(*names, **settings)

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """Exit with status 2 and the words that no argument takes."""
        unknown = [word.partition("=")[0] for word in words if word.startswith("-")]
        hint = "".join(did_you_mean(word, self.options, str) for word in unknown)
        self.error(f"unrecognized arguments: {' '.join(words)}{hint}")


class Version(argparse.Action):
    """Print the version and, in a checkout, its commit."""

    def __call__(self, parser: ArgumentParser, *_: object) -> None:
        from pipeline import provenance

        root = Path(__file__).parents[1]
        project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
        commit = provenance.git_commit()
        print(project["name"], project["version"], *([] if commit == "unknown" else [f"({commit})"]))
        parser.exit()


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(-?[\d.]+)\s*(k|M|G|)(i?)B?", text, re.IGNORECASE)
    try:
        number, prefix, binary = match.groups() if match else ("", "", "")
        return round(float(number) * (1024 if binary else 1000) ** " kmg".index(prefix.lower() or " "))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a number of bytes, such as 2000000, 2MB or 1.9MiB"
        ) from None


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    main()
