"""Teachers on disk: networks as tensors, ONNX files unchanged, everything else in readable JSON."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import save_file
from torch import Tensor, nn

import students
from pipeline import files, paths, provenance
from pipeline.distillation.labels import LiveTeacher
from pipeline.distillation.sources import ARCHITECTURE, STUDENT
from pipeline.models.initialisation import HEAD
from pipeline.tasks import Task
from teachers import state_dicts
from teachers.contract import InputContract
from teachers.onnx_files import OnnxClassifier
from teachers.outputs import Form, Logits, as_logits
from teachers.runtime import in_runtime
from teachers.sources import SOURCES
from teachers.teacher import Columns, Teacher, columns, replace_heads

ONNX = "model.onnx"


def save(folder: Path, teacher: Teacher, classes: Sequence[str], card: Mapping[str, Any]) -> dict[str, Any]:
    """Write a teacher whose outputs are the classes of the data; returns its card.

    The tensors of a network go to ``weights.safetensors``, an ONNX file is copied, the rest is in
    ``card.json``.

    Raises:
        TeacherError: the teacher does not know these classes.
    """
    teacher, form = _bare(teacher)
    indices = columns(teacher, classes)
    if isinstance(teacher.module, OnnxClassifier):
        with files.replacing(folder / ONNX) as fresh:
            shutil.copyfile(teacher.module.path, fresh)
        sha256 = provenance.sha256(folder / ONNX)
    else:
        tensors = {
            name: value.cpu().contiguous().clone() for name, value in teacher.module.state_dict().items()
        }
        with files.replacing(folder / paths.WEIGHTS) as fresh:
            save_file(tensors, fresh)
        sha256 = provenance.sha256(folder / paths.WEIGHTS)
    card = {
        **card,
        "origin": teacher.origin,
        "outputs": teacher.outputs,
        "form": form,
        "columns": None if indices == tuple(range(teacher.outputs)) else indices,
        "sha256": sha256,
        **({"arguments": dict(teacher.arguments)} if teacher.arguments else {}),
    }
    write_card(folder, card)
    return card


def _bare(teacher: Teacher) -> tuple[Teacher, Form]:
    """A teacher whose module returns what its weights compute, and the form of that."""
    if isinstance(teacher.module, Logits):
        return replace(teacher, module=teacher.module.classifier), teacher.module.form
    return teacher, teacher.module.form if isinstance(teacher.module, OnnxClassifier) else "logits"


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write ``card.json``."""
    files.write(folder / paths.CARD, json.dumps(card, indent=2) + "\n")


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a teacher or of an ensemble."""
    return json.loads((folder / paths.CARD).read_text())


def identity(members: Sequence[Mapping[str, Any]]) -> str:
    """Hash over everything that the outputs of a teacher or an ensemble depend on, from the cards of its
    members."""
    keys = ("source", "name", "sha256", "columns", "form", "input")
    return provenance.identity(members=[{key: card[key] for key in keys} for card in members])


def load(folder: Path) -> tuple[nn.Module, InputContract]:
    """A saved teacher: a network from normalised images to logits of the classes of the data, and its input.

    Raises:
        TeacherError: its architecture is no longer available.
        WeightsError: the tensors do not fit the architecture.
    """
    card = read_card(folder)
    form: Form = card["form"]
    if (folder / ONNX).exists():
        module: nn.Module = OnnxClassifier(folder / ONNX)
        module.form = form
    else:
        weights = folder / paths.WEIGHTS
        if card["source"] == STUDENT:
            network = students.build(ARCHITECTURE, {**card["arguments"], "classes": card["outputs"]})
        else:
            teacher = SOURCES[card["source"]](card["name"], None)
            if teacher.outputs != card["outputs"] or card["adapted"]:
                replace_heads(teacher, card["outputs"])
            network = teacher.module
        state_dicts.fill(network, state_dicts.read(weights), str(weights))
        module = as_logits(network, form)
    network = Columns(module, card["columns"]) if card["columns"] else module
    return network.eval(), InputContract.from_dict(card["input"])


def load_student(folder: Path) -> tuple[nn.Module, dict[str, Any], InputContract]:
    """A saved teacher of a student's architecture as a student: with the logits of the classes of the data
    alone, the arguments that rebuild it, and its input.

    Raises:
        WeightsError: the tensors do not fit the architecture.
    """
    card = read_card(folder)
    columns = card["columns"] or range(card["outputs"])
    arguments = {**card["arguments"], "classes": len(columns)}
    weights = folder / paths.WEIGHTS
    tensors = state_dicts.read(weights)
    tensors |= {name: tensors[name][list(columns)] for name in HEAD}
    module = students.build(ARCHITECTURE, arguments)
    state_dicts.fill(module, tensors, str(weights))
    return module.eval(), arguments, InputContract.from_dict(card["input"])


def live(device: torch.device, folder: Path, task: Task) -> LiveTeacher:
    """The teacher or ensemble of a folder, ready to run while a student trains.

    Raises:
        TeacherError: an architecture is no longer available.
        WeightsError: the tensors do not fit the architecture.
    """
    members = [load(folder / member) for member in read_card(folder)["members"]]
    networks = [
        in_runtime(module.requires_grad_(False).to(device), contract.size).module
        for module, contract in members
    ]
    contracts = tuple(contract for _, contract in members)

    @torch.no_grad()
    def ask(images: Sequence[UInt8[Tensor, "batch _ _ 3"]]) -> Float[Tensor, "batch classes"]:
        members = zip(networks, contracts, images, strict=True)
        return task.mean([network(contract.normalise(views)).float() for network, contract, views in members])

    return LiveTeacher(contracts, ask)
