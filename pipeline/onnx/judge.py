"""A judge of quantised students: their files in ONNX Runtime against the parent's file."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pipeline import resources
from pipeline.models.layers import Network
from pipeline.models.storage import Model, Quantization
from pipeline.onnx import export
from pipeline.onnx.inference import open_classifier, run
from pipeline.quantization.post_training import Judge, Judgement
from pipeline.tasks import Task
from teachers.contract import InputContract


def answer(
    model: Model, batches: Iterable[UInt8[Tensor, "_ height width 3"]], threads: int
) -> Float[Tensor, "images classes"]:
    """Logits of the file that a model would ship as, in ONNX Runtime.

    Args:
        model: the student.
        batches: images as bytes, rendered by its contract.
        threads: number of parts of a batch that run at the same time, each in a thread.

    Raises:
        ExportError: the file cannot be written; see ``export.export``.
    """
    with resources.scratch() as folder:
        file = folder / "trial.onnx"
        export.export(model, file, export.metadata_for(model.card, model.quantization))
        classifier = open_classifier(file, parts=threads)
        return torch.from_numpy(np.concatenate(list(run(classifier, (batch.numpy() for batch in batches)))))


def judge_files(
    parent: Model,
    images: Sequence[UInt8[Tensor, "batch height width 3"]],
    labels: np.ndarray,
    task: Task,
    *,
    contract: InputContract,
    threads: int,
) -> Judge:
    """Judge networks by the answers of the file that would ship, in ONNX Runtime, against the parent's file.

    Args:
        parent: the parent in float.
        images: images of val as bytes, which both files take.
        labels: their labels, in the same order.
        task: the question that the student answers.
        contract: input contract of the networks that are judged.
        threads: number of parts of a batch that run at the same time, each in a thread.

    Raises:
        ExportError: a file cannot be written; see ``export.export``.
    """
    card = replace(parent.card, arguments={**parent.card.arguments, "norm": False}, input=contract)
    reference = answer(parent, images, threads).double()

    def judge(network: Network, quantization: Quantization) -> Judgement:
        logits = answer(Model(network.module, card, quantization), images, threads)
        pairs = zip(logits.double().split(1), reference.split(1), strict=True)
        divergences = np.array([float(task.kl(own, parents, 1.0)) for own, parents in pairs])
        truths = zip(logits.double().split(1), torch.from_numpy(labels).split(1), strict=True)
        losses = np.array([float(task.cross_entropy(own, truth)) for own, truth in truths])
        return Judgement(divergences, losses, task.score(task.predictions(logits.numpy()), labels))

    return judge
