"""Quantised variants, rebuilt from their folder alone in a process that made none of them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.models import layers, storage
from pipeline.models.storage import Model
from pipeline.pruning import surgery
from pipeline.quantization import aware_training
from tests.tiny_students import FLOAT_LAYERS, NARROW, SIZE, photographs, quantized, simulated, student

ROOT = Path(__file__).parents[1]
REBUILD = """
import sys, torch
from pathlib import Path
from pipeline.models import layers, storage
from pipeline.models.layers import trace
from pipeline.quantization.simulator import simulate
torch.set_num_threads(1)
images = torch.load(Path(sys.argv[1]) / "images.pt")
answers = {}
for name in sys.argv[2:]:
    model = storage.load(Path(sys.argv[1]) / name)
    with torch.no_grad():
        answers[name] = simulate(trace(model.module), model.quantization)(images)
assert "nni" not in sys.modules
torch.save(answers, Path(sys.argv[1]) / "answers.pt")
"""


def trained(model: Model) -> Model:
    """The student after some steps of quantisation-aware training with learned steps."""
    images = photographs(16).permute(0, 3, 1, 2) / 255
    start = quantized(model, 63, FLOAT_LAYERS)
    assert start.quantization is not None
    prepared = aware_training.prepare(layers.trace(start.module), start.quantization, learn_steps=True)
    optimizer = torch.optim.AdamW(prepared.module.parameters(), 1e-3)
    for _ in range(2):
        prepared.module.train()(images).logsumexp(1).mean().backward()
        optimizer.step()
    network, quantization = aware_training.finish(prepared)
    return Model(network.module, start.card, quantization)


def test_quantised_variants_give_the_same_logits_in_a_new_process(tmp_path: Path) -> None:
    model = student()
    shrunk, arguments = surgery.remove_channels(
        model.module, model.card.arguments, NARROW, size=SIZE, criterion="l1"
    )
    pruned = Model(shrunk, replace(model.card, arguments=arguments))
    variants = {
        "int8-ptq": quantized(model, 63, FLOAT_LAYERS),
        "int8-qat": trained(model),
        "pruned-int8": trained(pruned),
    }
    images = photographs(6).permute(0, 3, 1, 2) / 255
    torch.save(images, tmp_path / "images.pt")
    for name, variant in variants.items():
        storage.save(tmp_path / name, variant)
    subprocess.run([sys.executable, "-c", REBUILD, str(tmp_path), *variants], cwd=ROOT, check=True)
    answers = torch.load(tmp_path / "answers.pt")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, variant in variants.items():
            with torch.no_grad():
                expected = simulated(variant)(images)
            assert expected.std() > 0
            assert torch.equal(answers[name], expected), name
    finally:
        torch.set_num_threads(threads)
