"""Check all parameters before any work starts, and take the fingerprints of the code."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import earlier, files, fingerprint, parameters, paths
from pipeline.data import sources
from pipeline.parameters import ParameterError, Parameters, Quantize, composition, configuration
from pipeline.running import dvc_parent, lock_file
from pipeline.running.process import stage
from pipeline.tracking import addresses, database
from pipeline.tracking.records import URI_VARIABLE, TrackingServer
from teachers.local_files import SUFFIXES

EXPERIMENT = "DVC_EXP_NAME"
"""Environment variable in which DVC names the experiment that runs."""
NAMED_BY_PLACE = ("hugging_face", "onnx", "student")
"""Sources of teachers whose names can be files or folders."""


def main() -> None:
    """Check the composed default of `configs/` and `params.yaml`; say where the two differ by hand."""
    default = parameters.check(composition.composed(), str(paths.CONFIGS))
    current = parameters.load()
    lock_file.mend(current.variants)
    differing = [key for key, value in default if getattr(current, key) != value]
    # A plan and an experiment differ on purpose.
    if differing and current != configuration.planned() and EXPERIMENT not in os.environ:
        print(
            f"note: {paths.PARAMETERS} is not the default run: {', '.join(differing)} differ. "
            "`dvc exp run -S KEY=VALUE` would start from the default run"
        )
    if current.data.path.exists():
        for note in sources.check_files(current.data.path):
            print(f"note: {note}")
    elif current.data.is_downloaded:
        absent = f"{current.data.path} is not there; `python -m pipeline fetch` downloads it"
        if dvc_parent.STAGE in os.environ:  # DVC would go on and miss the folder in words of its own
            raise ParameterError(absent)
        print(f"note: {absent}")
    if current.probe.out_of_distribution is not None:
        from pipeline.inspection import out_of_distribution  # slow to import

        out_of_distribution.check_folder(current.probe.out_of_distribution)
    if current.evaluation.metadata is not None:
        from pipeline.evaluation import slices  # slow to import

        slices.read_table(current.evaluation.metadata)
    _check_float_layers(current)
    _check_hubs(current)
    _check_tracking(current)
    # Always the same content: a changed parameter reruns the stages that read it and no others.
    contents = {paths.CHECKED: "parameters are valid\n"}
    contents |= {
        paths.CODE / name: f"{digest}\n" for name, digest in fingerprint.fingerprints(Path()).items()
    }
    for name, places in local_files(current).items():
        # DVC does not know these files, and a stage that has read them must run again when they change.
        contents[paths.CODE / name] += f"{earlier.digest(*places)}\n" if places else ""
    for other in {*paths.CODE.glob("*")} - {*contents}:
        other.unlink()
    for file, content in contents.items():
        # What stays the same is not touched: another `dvc repro` may be reading it.
        if not file.is_file() or file.read_text() != content:
            files.write(file, content)


def _check_tracking(p: Parameters) -> None:
    """Look at the address, at a database and where it would be; a server may be away until the end."""
    address = TrackingServer(p.tracking.uri, p.tracking.experiment, paths.home()).address()
    file = addresses.database(address)
    problem = addresses.missing_driver(address) if file is None else database.check(file)
    if problem is not None:
        uri = os.environ.get(URI_VARIABLE) or p.tracking.uri
        key = "tracking.uri" if uri == p.tracking.uri else URI_VARIABLE
        raise database.DatabaseError(f"{key} = {uri!r}: {problem}")


def _check_hubs(p: Parameters) -> None:
    """Ask the hubs of weights that no finished stage has loaded and that are not on this machine.

    A hub that does not answer would end the run later, after the work that needs no hub.
    """
    sources = {"hugging_face", "timm", "torchvision"}
    folders = [paths.TEACHER / str(index) for index in range(len(p.teacher.members))]
    for folder, member in zip(
        folders if p.teacher.ensemble else [paths.TEACHER], p.teacher.members, strict=True
    ):
        if member.source in sources and _read(folder).get("name") != member.name:
            from teachers.sources import HUBS  # imports PyTorch, as below

            with HUBS[member.source](member.name, member.weights):
                pass
    init, cards = p.student.init, [_read(paths.model(name)) for name in p.variants]
    if (
        init is not None
        and init.source in sources
        and not any(card.get("start", "").endswith(init.path) for card in cards)
    ):
        from pipeline.models import initialisation

        with initialisation.hub(init.source, init.path):
            pass


def local_files(p: Parameters) -> dict[str, list[Path]]:
    """Files of weights and names on this machine that a stage reads and that `dvc.yaml` lacks, by stage."""
    named = [
        text
        for member in p.teacher.members
        if member.sha256 is None
        for text in (member.weights, member.labels, member.name if member.source in NAMED_BY_PLACE else None)
        if isinstance(text, str) and text not in ("data", "default", "natural")
    ]
    init = p.student.init
    return {"teach": _files(named), "distill": _files([init.path] if init else [])}


def _files(names: Sequence[str]) -> list[Path]:
    """The files among some names, the weights and settings in the folders, and those with such beginnings."""
    found = []
    for place in map(Path, names):
        if place.is_dir():
            found += [file for file in place.iterdir() if file.suffix in (".json", *SUFFIXES)]
        else:
            found += [place] if place.is_file() else place.parent.glob(f"{place.name}.*")
    return sorted(found)


def _read(folder: Path) -> dict[str, Any]:
    """The card of a finished teacher or variant; empty if there is none."""
    try:
        return json.loads((folder / "card.json").read_text())
    except (OSError, ValueError):
        return {}


def _check_float_layers(p: Parameters) -> None:
    """Look for the layers that are to stay in float in the architecture of the student."""
    wanted = {
        f"variants.{name}.float_layers": layers
        for name, variant in p.variants.items()
        if variant.op == "quantize"
        and (layers := p.settings(name, Quantize).float_layers) not in ("auto", ())
    }
    if not wanted:
        return
    # PyTorch takes seconds to be imported, and most runs need none of this.
    import students
    from pipeline.models import layers

    network = layers.trace(students.build(p.student.architecture, {"classes": 2}))
    problems = [
        f"{paths.PARAMETERS}: {key} = {layer!r}: no such layer; allowed: auto, {', '.join(network.layers)}"
        for key, named in wanted.items()
        for layer in named
        if layer not in network.layers
    ]
    if problems:
        raise ParameterError(*problems)


if __name__ == "__main__":
    with stage():
        main()
