"""Quantised variants, rebuilt from their folder alone in a process that made none of them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.models import storage
from pipeline.models.storage import Model
from pipeline.pruning import surgery
from pipeline.quantization import aware_training
from pipeline.quantization.simulator import simulate
from teachers.contract import InputContract
from tests.test_onnx_export import FLOAT_LAYERS, SIZE, photographs, quantized, student

ROOT = Path(__file__).parents[1]
REBUILD = """
import sys, torch
from pathlib import Path
from pipeline import models
from pipeline.quantization import simulate
torch.set_num_threads(1)
images = torch.load(Path(sys.argv[1]) / "images.pt")
answers = {}
for name in sys.argv[2:]:
    model = models.load(Path(sys.argv[1]) / name)
    with torch.no_grad():
        answers[name] = simulate(model.module, model.quantization)(images)
assert "nni" not in sys.modules
torch.save(answers, Path(sys.argv[1]) / "answers.pt")
"""


def trained(model: Model) -> Model:
    """The student after some steps of quantisation-aware training with learned steps."""
    images = photographs(16).permute(0, 3, 1, 2) / 255
    prepared = aware_training.prepare(
        model.module,
        weight_limit=63,
        float_layers=FLOAT_LAYERS,
        batches=lambda: iter(images.split(8)),
        learn_ranges=True,
    )
    aware_training.freeze_norm(prepared.module)
    optimizer = torch.optim.AdamW(prepared.module.parameters(), 1e-3)
    for _ in range(2):
        prepared.module.train()(images).logsumexp(1).mean().backward()
        optimizer.step()
    module, arguments, quantization = aware_training.finish(prepared, "mobilenet_v1", model.card.arguments)
    return Model(module, replace(model.card, arguments=arguments), quantization)


def test_quantised_variants_give_the_same_logits_in_a_new_process(tmp_path: Path) -> None:
    model = student(InputContract(SIZE))
    narrow = [max(8, count // 2) for count in model.card.arguments["channels"]]
    shrunk, arguments = surgery.remove_channels(
        model.module, model.card.arguments, narrow, size=SIZE, criterion="l1"
    )
    pruned = Model(shrunk, replace(model.card, arguments=arguments))
    variants = {
        "int8-ptq": quantized(model, 63, FLOAT_LAYERS),
        "int8-qat": trained(model),
        "pruned-int8": trained(pruned),
    }
    images = photographs(6).permute(0, 3, 1, 2) / 255
    torch.save(images, tmp_path / "images.pt")
    for name, made in variants.items():
        storage.save(tmp_path / name, made)
    subprocess.run([sys.executable, "-c", REBUILD, str(tmp_path), *variants], cwd=ROOT, check=True)
    answers = torch.load(tmp_path / "answers.pt")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, made in variants.items():
            assert made.quantization is not None
            with torch.no_grad():
                wanted = simulate(made.module, made.quantization)(images)
            assert wanted.std() > 0
            assert torch.equal(answers[name], wanted), name
    finally:
        torch.set_num_threads(threads)
