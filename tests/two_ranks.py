"""A small training that several processes share; `test_ranks.py` starts it as stages are started."""

import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.data import centred_views, store
from pipeline.data.batches import ViewSet
from pipeline.data.views import ViewSpace
from pipeline.distillation import objective
from pipeline.distillation.settings import Objective
from pipeline.running.process import stage
from pipeline.training import compute, loop, norms, scoring
from pipeline.training.loop import Run
from pipeline.training.settings import ComputeSettings, Phase, TrainingSettings
from teachers.contract import InputContract

SPACE = ViewSpace(seed=0, crop_scale=(0.6, 1.0), crop_ratio=(0.8, 1.25))
CONTRACT = InputContract(32)
OBJECTIVE = Objective(kl=0.4, dist=0.2, cross_entropy=0.4, temperature=2.0)
TRAINING: dict[str, Any] = {
    "epochs": 3.0,
    "phases": (Phase(share=0.6, size=32), Phase(share=0.4, size=48)),
    "batch_size": 9,  # which two processes cannot divide equally
    "optimizer": "sgd",  # adamw turns a rounding error of a small gradient into a step of full size
    "learning_rate": 0.01,
    "warmup": 0.1,
    "ema": 0.9,
}
SCORED = 4
"""Number of images that are scored at once, so that the test split has several batches."""


class InDouble(nn.Sequential):
    """A network that computes in 64 bits, in which the order of sums is next to nothing.

    It is shallow, since a deep one multiplies any difference: of 27 layers on a few images, one of 1e-14
    becomes one of 5 % in three epochs.
    """

    def __init__(self) -> None:
        widths = (3, 8, 16, 16)
        super().__init__(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU6()
                )
                for before, after in pairwise(widths)
            ),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 3),
        )
        self.double()

    def forward(self, input: Tensor) -> Tensor:
        """Logits that differ enough between images for distances between images to have digits."""
        return 5 * super().forward(input.double())


def main(data: str, folder: str, given: str, changes: str) -> None:
    """Train on a prepared folder, and write the state at the end and the history into another one.

    Args:
        data: the prepared folder.
        folder: folder of the results.
        given: settings of the processes, in JSON.
        changes: changes of ``TRAINING``, in JSON.
    """
    here = Path(folder)
    # Without the trial of bf16, whose outcome could differ between the runs that are compared.
    settings = {"accelerator": "cpu", "threads": 1, "precision": "32-true", **json.loads(given)}
    fabric = compute.start(ComputeSettings(**settings), ranks=True)
    centred_views.ON_CPU = SCORED
    (here / f"process-{fabric.global_rank}").write_text(str(os.getpid()))
    train, val, test = (store.read(Path(data), split) for split in ("train", "val", "test"))
    answers = torch.randn(len(train), 3, generator=torch.Generator().manual_seed(1)).half().numpy() * 4
    torch.manual_seed(0)
    module = InDouble()
    test_set = ViewSet(test, None, CONTRACT)
    before = scoring.predict(fabric, module, test_set, CONTRACT.size, 0)
    trained, history = loop.train(
        fabric,
        module,
        objective.loss_terms(OBJECTIVE, CONTRACT, train.task),
        OBJECTIVE.weights(),
        TrainingSettings(**TRAINING).model_copy(update=json.loads(changes)),
        train_set=ViewSet(train, SPACE, CONTRACT, lambda images, _: answers[images]),
        val_set=ViewSet(val, None, CONTRACT),
        views=None,
        seed=0,
        workers=0,
        run=Run("test", here / "checkpoints", "test"),
    )
    norms.settle(fabric, trained, ViewSet(train, SPACE, CONTRACT), 0)
    after = scoring.predict(fabric, trained, test_set, CONTRACT.size, 0)
    state = {"before": before, "after": after, **trained.state_dict()}
    save_file(state, here / f"state-{fabric.global_rank}.safetensors")
    if fabric.is_global_zero:
        (here / "history.json").write_text(json.dumps(history))
    print(f"rank {fabric.global_rank} of {fabric.world_size}")


if __name__ == "__main__":
    with stage():
        main(*sys.argv[1:])
