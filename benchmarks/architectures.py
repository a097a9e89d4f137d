"""Teachers of many architectures through the stage `teach`, with random weights and a handful of images.

Each architecture of torchvision and timm in the list is loaded, tried, adapted for some steps (its new last
layer first, then the whole network, with an average of its weights and a checkpoint), stored, loaded again,
and asked. The first run has a phase of 64 pixels, as the default teacher; if an architecture refuses that
size, a second run trains at its own size. A refusal is one line before any training; a traceback is a defect.

    python benchmarks/architectures.py [NAME ...]
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import yaml
from PIL import Image

from pipeline import paths
from pipeline.data import sources, splits, store
from pipeline.process import one_line_errors
from pipeline.settings import merge
from pipeline.stages import teach

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = {
    "torchvision": (
        "alexnet convnext_tiny densenet121 efficientnet_b0 googlenet inception_v3 "
        "maxvit_t mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_y_400mf resnet18 "
        "shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t vgg11 vit_b_16"
    ),
    "timm": (
        "beit_base_patch16_224 botnet26t_256 cait_xxs24_224 coat_lite_tiny coat_tiny coatnet_nano_rw_224 "
        "convit_tiny convnextv2_atto crossvit_tiny_240 davit_tiny "
        "deit_tiny_distilled_patch16_224 dla34 dpn48b eca_nfnet_l0 edgenext_xx_small "
        "efficientformer_l1 efficientformerv2_s0 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 "
        "fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 ghostnetv2_100 gmlp_ti16_224 "
        "hgnetv2_b0 hiera_tiny_224 hrnet_w18_small inception_next_atto "
        "lcnet_050 levit_128s mambaout_femto maxvit_rmlp_pico_rw_256 "
        "mixer_s32_224 mixnet_s mobilenetv4_conv_small mobileone_s0 mobilevit_xxs "
        "mobilevitv2_050 mvitv2_tiny nest_tiny pit_ti_224 poolformer_s12 pvt_v2_b0 regnetx_002 "
        "repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_26w_4s resmlp_12_224 resnest14d resnetv2_50 "
        "rexnet_100 selecsls42 starnet_s1 "
        "swin_tiny_patch4_window7_224 swinv2_cr_tiny_ns_224 swiftformer_xs "
        "tinynet_e tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 "
        "visformer_tiny vit_tiny_patch16_224 volo_d1_224 "
        "xcit_nano_12_p16_224"
    ),
}
"""Names by source: small variants of as many families as there are."""
PHASE = 64
"""Image size in pixels of the first phase of the default teacher."""
PARAMETERS = yaml.safe_load((ROOT / paths.PARAMETERS).read_text())
TRAINING = {"epochs": 1, "batch_size": 4, "learning_rate": 0.001, "ema": 0.5}


class Result(NamedTuple):
    """What became of one run of the stage."""

    status: str
    """``adapted``, ``refused`` or ``defect``."""
    words: str
    """Last line of its output."""
    seconds: float
    gigabytes: float
    """Greatest resident memory."""


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
    store.write(
        folder / paths.DATA, listing, made, {"source": "folder", "path": "images", "license": "CC0-1.0"}
    )


def run(folder: Path, source: str, name: str, phases: list[dict[str, Any]]) -> Result:
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
            "full": {**TRAINING, "phases": phases},
            "doubtful": "accept",
        },
    }
    (folder / paths.PARAMETERS).write_text(yaml.safe_dump(merge(PARAMETERS, changes)))
    shutil.rmtree(folder / paths.TEACHER, ignore_errors=True)
    began = time.monotonic()
    output = folder / "output.txt"
    child = os.fork()  # a new interpreter would import for longer than most architectures train
    if not child:
        _teach(folder, output)
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    lines = output.read_text(errors="replace").strip().splitlines() or [""]
    errors = [line for line in lines if line.startswith("error: ")]
    if code == 0:
        kind, words = "adapted", lines[-1]
    elif code == 1 and len(errors) == 1 and lines[-1] == errors[0]:
        kind, words = "refused", errors[0]
    else:
        kind, words = "defect", lines[-1]
    return Result(kind, words, time.monotonic() - began, usage.ru_maxrss / 2**20)


def _teach(folder: Path, output: Path) -> NoReturn:
    """Run the stage in this process, with its output in a file, and end the process."""
    code = 1
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(folder)
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


def main() -> None:
    """Print one line per architecture and run, then the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    parser.add_argument("names", nargs="*", help="architectures of the list; all without any")
    chosen = set(parser.parse_args().names)
    pairs = [(source, name) for source, names in ARCHITECTURES.items() for name in names.split()]
    pairs = [pair for pair in pairs if not chosen or pair[1] in chosen]
    counts: dict[str, int] = dict.fromkeys(("adapted", "adapted at its own size", "refused", "defect"), 0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder)
        for source, name in pairs:
            result = run(folder, source, name, [{"share": 0.5, "size": PHASE}, {"share": 0.5}])
            _print(source, name, result)
            status = result.status
            if status == "refused":
                result = run(folder, source, name, [])
                _print(source, name, result)
                status = "adapted at its own size" if result.status == "adapted" else result.status
            counts[status] += 1
    print(f"{len(pairs)} architectures:", ", ".join(f"{count} {status}" for status, count in counts.items()))
    sys.exit(counts["defect"] > 0)


def _print(source: str, name: str, result: Result) -> None:
    cost = f"{result.seconds:.0f} s, {result.gigabytes:.1f} GB"
    print(f"{source} {name}: {result.status}, {cost}: {result.words}", flush=True)


if __name__ == "__main__":
    main()
