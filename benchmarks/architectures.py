"""Teachers of many architectures through the stage `teach`, with random weights and a handful of images.

    python -m benchmarks.architectures --record .tiny/architectures.jsonl

Each architecture in the list has a process with a limit of memory and of time. It is loaded, tried, adapted
for some steps (its new last layer first, then the whole network, with an average of its weights and a
checkpoint), stored, loaded again, and asked. The first run has a phase of 64 pixels, as the default teacher;
if an architecture refuses that size, a second run trains at its own size. A refusal is one line before any
training; everything else is a defect. The record has one line of JSON per architecture and run; the same
command goes on where it was stopped, unless the code of the stage or its packages have changed.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import psutil
import timm
import torch
import torchvision
import yaml
from PIL import Image

from pipeline import fingerprint, paths
from pipeline.data import sources, splits, writing
from pipeline.running.process import one_line_errors
from pipeline.settings import merge
from pipeline.stages import teach
from pipeline.training import precision

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = {
    "torchvision": (
        "alexnet convnext_tiny densenet121 efficientnet_b0 googlenet inception_v3 "
        "maxvit_t mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_y_400mf resnet18 "
        "shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t vgg11 vit_b_32"
    ),
    "timm": (
        "beit_base_patch16_224 botnet26t_256 cait_xxs24_224 coat_lite_tiny coat_tiny coatnet_nano_rw_224 "
        "convit_tiny convmixer_768_32 convnextv2_atto cpubone_b0_bfrobust crossvit_tiny_240 "
        "cs3darknet_focus_s csatv2 cspnext_tiny davit_tiny deit_tiny_distilled_patch16_224 "
        "densenetblur121d dla34 dpn48b eca_nfnet_l0 edgenext_xx_small efficientformer_l1 "
        "efficientformerv2_s0 efficientvim_m1_dist efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw "
        "eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m "
        "ghostnet_050 ghostnetv2_100 gmlp_ti16_224 hardcorenas_a hgnetv2_b0 hiera_tiny_224 hrnet_w18_small "
        "iformer_m_distilled inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnet_050 "
        "lcnetv2_small legacy_seresnet18 legacy_xception levit_128s lowformer_b0 mambaout_femto "
        "maxvit_rmlp_pico_rw_256 mixer_s32_224 mixnet_s mobilenetv4_conv_small mobilenetv5_300m "
        "mobileone_s0 mobilevit_xxs mobilevitv2_050 mvitv2_tiny naflexvit_base_patch16_gap nasnetalarge "
        "nest_tiny nextvit_small pit_ti_224 pnasnet5large poolformer_s12 pvt_v2_b0 qwen3_vit_88m rdnet_tiny "
        "regnetx_002 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_26w_4s resmlp_12_224 resnest14d "
        "resnet10t resnetv2_50 rexnet_100 sam2_hiera_tiny samvit_base_patch16_224 selecsls42 sequencer2d_s "
        "shvit_s1 skresnet18 starnet_s1 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_ns_224 "
        "swinv2_tiny_window8_256 test_vit_relpos tiny_vit_5m_224 tinynet_e tnt_s_legacy_patch16_224 "
        "tresnet_m twins_svt_small vgg11 visformer_tiny vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 "
        "vitamin_small_224 volo_d1_224 xception41 xcit_nano_12_p16_224"
    ),
}
"""Names by source: a small variant of every family of timm's, except one whose smallest has 412 million
weights, and the families of torchvision."""
PHASE = 64
"""Image size in pixels of the first phase of the default teacher."""
SIZES = {"phase": [{"share": 0.5, "size": PHASE}, {"share": 0.5}], "own": []}
"""Phases of the training of the whole network by the name of the run."""
MEMORY = 8 << 30
"""Bytes that a process may have beside what it starts with."""
SECONDS = 1800
"""Seconds after which a process is ended."""
PARAMETERS = yaml.safe_load((ROOT / paths.PARAMETERS).read_text())
TRAINING = {"epochs": 1, "batch_size": 4, "learning_rate": 0.001, "ema": 0.5}


@dataclass(frozen=True)
class Result:
    """What became of one run of the stage."""

    source: str
    name: str
    sizes: str
    """Key of ``SIZES``."""
    status: str
    """``adapted``, ``refused`` or ``defect``."""
    words: str
    """Last line of its output, after the signal that has ended it, if one has."""
    seconds: float
    gigabytes: float
    """Greatest resident memory."""
    code: str
    """What the result depends on: the stage's code and the versions of its packages."""


def main() -> None:
    """Print one line per architecture and run, then the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    parser.add_argument("names", nargs="*", help="architectures of the list; all without any")
    parser.add_argument("--record", type=Path, help="file of JSON lines, which the command continues")
    arguments = parser.parse_args()
    code = _code()
    done = _read(arguments.record, code)
    pairs = [(source, name) for source, names in ARCHITECTURES.items() for name in names.split()]
    pairs = [pair for pair in pairs if not arguments.names or pair[1] in arguments.names]
    counts: dict[str, int] = dict.fromkeys(("adapted", "adapted at its own size", "refused", "defect"), 0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder)
        for source, name in pairs:
            status = sizes = ""
            for sizes in SIZES:
                result = done.get((source, name, sizes))
                if result is None:
                    result = run(folder, source, name, sizes, code)
                    _keep(arguments.record, result)
                status = result.status
                if status != "refused":
                    break
            counts["adapted at its own size" if status == "adapted" and sizes == "own" else status] += 1
    print(f"{len(pairs)} architectures:", ", ".join(f"{count} {status}" for status, count in counts.items()))
    sys.exit(counts["defect"] > 0)


def _code() -> str:
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}"
    return f"{fingerprint.fingerprints(ROOT)['teach'][:12]}, {versions}"


def _read(record: Path | None, code: str) -> dict[tuple[str, str, str], Result]:
    """Results of the present code that the record has."""
    if record is None or not record.exists():
        return {}
    results = [Result(**json.loads(line)) for line in record.read_text().splitlines()]
    return {(one.source, one.name, one.sizes): one for one in results if one.code == code}


def _keep(record: Path | None, result: Result) -> None:
    cost = f"{result.seconds:.0f} s, {result.gigabytes:.1f} GB"
    print(
        f"{result.source} {result.name} ({result.sizes}): {result.status}, {cost}: {result.words}", flush=True
    )
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        with record.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")


def prepare(folder: Path) -> None:
    """Write prepared data of two classes and the parameters that all runs share."""
    random = np.random.default_rng(0)
    for label, level in (("dark", 60), ("light", 190)):
        (folder / "images" / label).mkdir(parents=True)
        for number in range(10):
            pixels = np.clip(random.normal(level, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / label / f"{number}.png")
    listing = sources.folder(folder / "images")
    made = splits.assign(listing.labelled, train=None, val=0.3, test=0.3, seed=0)
    writing.write(
        folder / paths.DATA, listing, made, {"source": "folder", "path": "images", "license": "CC0-1.0"}
    )


def run(folder: Path, source: str, name: str, sizes: str, code: str) -> Result:
    """Run the stage in a process of its own."""
    changes = {
        "compute": {"workers": 0, "threads": 1},
        "data": {"path": str(folder / "images"), "source": "folder"},
        "teacher": {
            "source": source,
            "name": name,
            "weights": None,
            "size": None,
            "head": {**TRAINING, "phases": []},
            "full": {**TRAINING, "phases": SIZES[sizes]},
            "doubtful": "accept",
        },
    }
    (folder / paths.PARAMETERS).write_text(yaml.safe_dump(merge(PARAMETERS, changes)))
    for path in (paths.TEACHER, paths.model("teacher"), paths.CHECKPOINTS):
        shutil.rmtree(folder / path, ignore_errors=True)
    began = time.monotonic()
    output = folder / "output.txt"
    child = os.fork()  # a new interpreter would import for longer than most architectures train
    if not child:
        _teach(folder, output)
    _, state, usage = os.wait4(child, 0)
    lines = output.read_text(errors="replace").strip().splitlines() or [""]
    trained = any(file.is_file() for file in (folder / paths.CHECKPOINTS).glob("teacher*/**/*"))
    exit_code = os.waitstatus_to_exitcode(state)
    status = _status(exit_code, lines, trained=trained)
    words = lines[-1] if exit_code >= 0 else f"ended by {signal.Signals(-exit_code).name}: {lines[-1]}"
    seconds, gigabytes = time.monotonic() - began, usage.ru_maxrss / 2**20
    return Result(source, name, sizes, status, words, round(seconds, 1), round(gigabytes, 2), code)


def _status(exit_code: int, lines: Sequence[str], *, trained: bool) -> str:
    """``adapted``, ``refused`` or ``defect``, by how the stage has ended, and whether it had trained."""
    if exit_code == 0:
        return "adapted"
    errors = [line for line in lines if line.startswith("error: ")]
    one_line = exit_code == 1 and len(errors) == 1 and lines[-1] == errors[0]
    return "refused" if one_line and not trained and "memory" not in errors[0] else "defect"


def _teach(folder: Path, output: Path) -> NoReturn:
    """Run the stage in this process, with its output in a file, and end the process."""
    code = 1
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(folder)
        limit = psutil.Process().memory_info().vms + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.alarm(SECONDS)
        precision.UNTIMED, precision.TIMED = 0, 1  # a step in each arithmetic: which is faster is no matter
        with one_line_errors():
            teach.main()
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
