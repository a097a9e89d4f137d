"""Int8 files of one fp32 file, ours and by other tools, side by side.

    python -m benchmarks.int8_peers --python nncf=PATH/bin/python --python aimet=PATH/bin/python \\
        --python modelopt=PATH/bin/python --json

Takes a finished run's artifacts. Every tool gets the same fp32 file and the same calibration images, which
are those that set the ranges of ours (its row says where not); all files take raw pixels and are scored
and timed in this environment's ONNX Runtime. `benchmarks/requirements.txt` says what to install where. A tool
that is missing or fails is a row with the reason. To try: `--images 500 --calibration 32 --rounding 10`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from benchmarks import int8_makers, side_by_side
from benchmarks.int8_makers import MAKERS, Maker
from benchmarks.side_by_side import Row
from pipeline import paths
from pipeline.data import sampling, store
from pipeline.data.batches import Request, ViewSet
from pipeline.models import storage
from pipeline.onnx import inference
from pipeline.running import affinity
from pipeline.running.process import one_line_errors
from pipeline.tasks import SINGLE_LABEL


class PeerError(Exception):
    """A peer made no file. The message says why, in one line."""


def main() -> None:
    """Make, score and time the files; print a table, or one JSON object."""
    arguments = _arguments()
    artifacts: Path = arguments.artifacts
    parent = artifacts / paths.ONNX.name / f"{arguments.parent}.onnx"
    ours = {name: artifacts / paths.ONNX.name / f"{name}.onnx" for name in arguments.ours}
    contract = storage.load(artifacts / paths.MODELS.name / arguments.parent).card.input
    data = artifacts / paths.DATA.name
    test = store.read(data, "test")
    if test.task is not SINGLE_LABEL:
        raise ValueError(f"{data} is of {test.task.name} images; single_label is what this compares")
    images = store.read_training_images(data)
    chosen = sampling.choose(images, arguments.calibration, arguments.seed)
    sha256 = sampling.fingerprint(images, chosen)
    pixels = ViewSet(images, None, contract)[Request(chosen.tolist(), None, contract.size)].images.numpy()

    with tempfile.TemporaryDirectory() as scratch:
        folder: Path = arguments.into or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "calibration.npy", pixels)
        rows: dict[str, Row] = {arguments.parent: {"how": "the parent"}}
        rows |= {name: _own(path, arguments.parent, sha256) for name, path in ours.items()}
        files = {arguments.parent: parent, **ours}
        for name in arguments.peers:
            target = folder / f"{name}.onnx"
            rows[name] = {"how": side_by_side.description(MAKERS[name].make)}
            print(f"{name}: {rows[name]['how']}", file=sys.stderr, flush=True)
            try:
                rows[name] |= _make(name, parent, folder / "calibration.npy", target, arguments)
                files[name] = target
            except PeerError as error:
                rows[name]["reason"] = str(error)
                print(f"{name}: {error}", file=sys.stderr)
        measured = _measure(
            rows, files, ViewSet(side_by_side.spread(test, arguments.images), None, contract), arguments
        )
    result = {
        "parent": arguments.parent,
        "calibration": {"images": len(pixels), "sha256": sha256},
        "rounding": arguments.rounding,
        **measured,
        "rows": rows,
    }
    print(json.dumps(result, indent=2) if arguments.json else _page(result))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifacts", type=Path, default=paths.ARTIFACTS, help="default: %(default)s")
    parser.add_argument("--parent", default="fp32", help="the fp32 variant (default: %(default)s)")
    parser.add_argument("--ours", nargs="+", default=["int8-ptq", "int8-qat"], help="default: %(default)s")
    parser.add_argument("--peers", nargs="*", choices=MAKERS, default=list(MAKERS), help="default: all")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="TOOL=PATH",
        help="the Python that has a tool; tools are onnxruntime, nncf, aimet, modelopt (default: this one)",
    )
    parser.add_argument("--images", type=int, help="of test (default: all)")
    parser.add_argument("--calibration", type=int, default=512, help="images of train (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the calibration images (default: %(default)s)"
    )
    parser.add_argument(
        "--rounding",
        type=int,
        default=int8_makers.ROUNDING,
        help="iterations of AIMET's AdaRound (default: %(default)s)",
    )
    parser.add_argument("--sessions", type=int, default=8, help="of timing (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=4 * 3600, help="seconds of a tool (default: %(default)s)"
    )
    parser.add_argument("--into", type=Path, help="folder that keeps the files and the tools' output")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    try:
        arguments.python = pythons(arguments.python)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def pythons(pairs: list[str]) -> dict[str, str]:
    """Tool to the Python that has it.

    Raises:
        ValueError: a pair is not TOOL=PATH, the tool is unknown, or there is no such program.
    """
    tools = {maker.tool: sys.executable for maker in MAKERS.values()}
    for pair in pairs:
        tool, _, path = pair.partition("=")
        if tool not in tools:
            raise ValueError(f"--python {pair}: takes TOOL=PATH with a tool of {', '.join(tools)}")
        if not os.access(path, os.X_OK):
            raise ValueError(f"--python {pair}: {path or 'nothing'} cannot be run")
        tools[tool] = path
    return tools


def _own(path: Path, parent: str, sha256: str) -> Row:
    """What our file says of itself.

    Raises:
        ValueError: it has another parent.
    """
    metadata = inference.open_classifier(path, threads=1).metadata
    if metadata["parent"] != parent:
        raise ValueError(f"{path} is made of {metadata['parent']}, not of {parent}")
    how = ["ours"]
    if floats := json.loads(metadata["float_layers"]):
        how.append(f"in float: {', '.join(floats)}")
    if metadata["calibration_sha256"] != sha256:
        how.append("calibrated on other images")
    return {"how": "; ".join(how), "same_calibration": metadata["calibration_sha256"] == sha256}


def _make(name: str, parent: Path, images: Path, target: Path, arguments: argparse.Namespace) -> Row:
    """Let a tool make its file; it gets the parent's metadata, which tools may drop.

    Raises:
        PeerError: there is no file, or ONNX Runtime does not take it.
    """
    maker: Maker = MAKERS[name]
    log = target.with_suffix(".log")
    command = [arguments.python[maker.tool], "-P", int8_makers.__file__, name, parent, images, target]
    command += ["--rounding", str(arguments.rounding)]
    with log.open("w") as output:
        try:
            code = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, timeout=arguments.timeout, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            raise PeerError(f"not ready after {arguments.timeout:g} s") from None
    if code:
        lines = log.read_text(errors="replace").split("\n")
        raise PeerError(reason(code, lines))
    file = onnx.load(target)
    helper.set_model_props(file, {prop.key: prop.value for prop in onnx.load(parent).metadata_props})
    onnx.save(file, target)
    if (broken := side_by_side.fault(target)) is not None:
        raise PeerError(broken)
    return json.loads(target.with_suffix(".json").read_text())


def reason(code: int, lines: list[str]) -> str:
    """Why a tool ended with a code other than 0: the signal, or the last words."""
    if code < 0:
        return f"ended by signal {-code}"
    return next(
        (line.strip() for line in reversed(lines) if line.strip()), f"ended with code {code}, silently"
    )


def _measure(
    rows: dict[str, Row], files: Mapping[str, Path], test: ViewSet, arguments: argparse.Namespace
) -> Row:
    """Fill the rows; returns what is said of all of them."""
    answers = side_by_side.answer(files, test, affinity.physical_cores())
    times, about = side_by_side.timings(
        files, arguments.parent, sessions=arguments.sessions, seed=arguments.seed
    )
    whole = files[arguments.parent].stat().st_size
    for name, path in files.items():
        size, (int8, all_of_them) = path.stat().st_size, side_by_side.convolutions(path)
        rows[name] |= side_by_side.accuracy(answers[name], answers[arguments.parent])
        rows[name] |= {"size_bytes": size, "size_share": size / whole, **times[name]}
        rows[name] |= {"int8_convolutions": int8, "convolutions": all_of_them}
    peers = [name for name in arguments.peers if name in files]
    if peers:
        about["verdicts"] = side_by_side.verdicts(rows, answers, arguments.ours, peers)
    return about


def _page(result: Mapping[str, Any]) -> str:
    """What is printed without ``--json``."""
    header = [
        "file",
        "how",
        "test top-1, % (95 %)",
        f"points against {result['parent']} (95 %, paired)",
        "same answer, %",
        "MB",
        f"times {result['parent']}'s speed (95 %)",
        "int8 convolutions",
    ]
    lines = []
    for name, row in result["rows"].items():
        how = f"{row['how']} ({row['version']})" if "version" in row else row["how"]
        if "reason" in row:
            lines.append([name, how, f"none: {row['reason']}", *["-"] * (len(header) - 3)])
            continue
        lines.append(
            [
                name,
                how,
                side_by_side.percent(row, "top1"),
                side_by_side.percent(row, "delta", signed=True),
                f"{100 * row['agreement']:.2f}",
                f"{row['size_bytes'] / 1e6:.2f}",
                side_by_side.ratio(row),
                f"{row['int8_convolutions']} of {row['convolutions']}",
            ]
        )
    n = result["rows"][result["parent"]]["n"]
    return "\n".join(
        [
            side_by_side.table(header, lines),
            f"n = {n} test images, {result['calibration']['images']} calibration images, "
            f"{result['rounding']} iterations of AdaRound a layer; machine: {side_by_side.noise(result)}",
            side_by_side.sentences(result.get("verdicts", {})),
        ]
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
