"""One step of a training: the numbers of a plain step, with fewer operations around it."""

import copy
import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

import students
from benchmarks import loop_speed
from pipeline.data.batches import Batch
from pipeline.distillation.objective import loss_terms
from pipeline.distillation.settings import Objective
from pipeline.tasks import SINGLE_LABEL
from pipeline.training import compute, graphs, optimisation, prefetch
from pipeline.training.cpu_operators import FastOperators
from pipeline.training.graphs import Replayed
from pipeline.training.optimisation import Averages
from pipeline.training.settings import ComputeSettings, TrainingSettings
from pipeline.training.step import Step
from teachers.contract import InputContract

SIZE = 32
CONTRACT = InputContract(SIZE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
OBJECTIVE = Objective(kl=0.5, cross_entropy=1.0)
STEPS = 4
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def cpu() -> Fabric:
    return compute.start(ComputeSettings(accelerator="cpu", threads=1))


@pytest.fixture
def gpu() -> Fabric:
    return compute.start(ComputeSettings(accelerator="cuda"))


def student() -> nn.Module:
    torch.manual_seed(0)
    return students.build("mobilenet_v1", {"classes": 3, "channels": [8] * 14, "dropout": 0.2})


def quantised() -> nn.Module:
    """A student without batch norms whose weights and activations are rounded, to steps that are learned."""
    torch.manual_seed(0)
    module = students.build("mobilenet_v1", {"classes": 3, "channels": [8] * 14, "norm": False})
    return loop_speed.quantised(module)


def made_up(number: int, device: torch.device, size: int = SIZE, images: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(256, (images, size, size, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(3, (images,), generator=generator)
    answers = torch.randn(images, 3, generator=generator).half()
    return Batch(pixels.to(device), labels.to(device), answers.to(device))


def settings(**given: Any) -> TrainingSettings:
    return TrainingSettings(**{"epochs": 1.0, "learning_rate": 0.01, "ema": 0.5, "clip": 0.5, **given})


def prepared(
    fabric: Fabric, module: nn.Module, training: TrainingSettings, terms: Any = None
) -> tuple[Step, nn.Module | None]:
    averaged = copy.deepcopy(module).to(fabric.device) if training.ema else None
    groups = optimisation.parameter_groups(module, training.weight_decay)
    optimizer = optimisation.OPTIMIZERS[training.optimizer](groups, training.learning_rate)
    optimisation.capturable(optimizer, fabric.device)
    module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    wrapped, wrapped_optimizer = fabric.setup(module, optimizer)
    terms = terms or loss_terms(OBJECTIVE, CONTRACT, SINGLE_LABEL)
    weights = OBJECTIVE.weights()
    return Step(fabric, wrapped, wrapped_optimizer, averaged, terms, weights, training, (), "test"), averaged


def tensors(*modules: nn.Module | None) -> list[Tensor]:
    return [value.cpu() for module in modules if module for value in module.state_dict().values()]


CASES = [(student, name, {}) for name in optimisation.OPTIMIZERS]
CASES += [(student, "adamw", {"ema": 0.0, "clip": 0.0}), (quantised, "adamw", {})]


@pytest.mark.parametrize(("build", "optimizer", "given"), CASES)
def test_a_step_is_bit_for_bit_the_plain_step(
    cpu: Fabric, build: Callable[[], nn.Module], optimizer: str, given: dict[str, float]
) -> None:
    training = settings(optimizer=optimizer, **given)
    module = build()
    step, averaged = prepared(cpu, module, training)
    torch.manual_seed(1)
    step.begin()
    module.train()
    losses = [step(made_up(number, cpu.device), number, 0.01 / (1 + number)) for number in range(STEPS)]
    means = step.finish()

    plain = build().to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    groups = optimisation.parameter_groups(plain, training.weight_decay)
    rule = optimisation.OPTIMIZERS[optimizer](groups, training.learning_rate)
    mean = copy.deepcopy(plain)
    terms, weights = loss_terms(OBJECTIVE, CONTRACT, SINGLE_LABEL), OBJECTIVE.weights()
    torch.manual_seed(1)
    expected = []
    for number in range(STEPS):
        for group in rule.param_groups:
            group["lr"] = 0.01 / (1 + number)
        with FastOperators():
            parts = terms(plain, made_up(number, cpu.device))
        loss = torch.stack([weights[name] * parts[name] for name in parts]).sum()
        rule.zero_grad()
        loss.backward()
        if training.clip:
            ordered = [parameter for group in rule.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(ordered, training.clip)
        rule.step()
        expected.append(loss.detach())
        decay = min(training.ema, (1 + number) / (10 + number))
        with torch.no_grad():
            for old, new in zip(mean.state_dict().values(), plain.state_dict().values(), strict=True):
                old.copy_(torch.lerp(old, new, 1 - decay) if old.is_floating_point() else new)

    assert torch.equal(torch.stack(losses), torch.stack(expected))
    assert means["loss"] == pytest.approx(float(torch.stack(expected).mean()))
    assert set(means) == {"loss", "kl", "cross_entropy"}
    for one, other in zip(tensors(module, averaged), tensors(plain, mean), strict=False):
        assert torch.equal(one, other)
    assert not all(map(torch.equal, tensors(plain), tensors(build())))


def test_an_epoch_has_means_of_its_own(cpu: Fabric) -> None:
    step, _ = prepared(cpu, student(), settings())
    means = []
    for epoch in range(2):
        step.begin()
        losses = [step(made_up(number, cpu.device), epoch, 0.0) for number in (epoch, epoch + 2)]
        means.append(step.finish()["loss"])
        assert means[-1] == pytest.approx(float(torch.stack(losses).mean()))
    assert means[0] != means[1]


def test_a_step_leaves_no_gradients_behind(cpu: Fabric) -> None:
    module = student()
    step, _ = prepared(cpu, module, settings())
    step.begin()
    step(made_up(0, cpu.device), 0, 0.01)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_averages_are_those_of_pytorch() -> None:
    module, decay = student(), 0.75
    averaged = copy.deepcopy(module)
    peer = AveragedModel(module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay))
    peer.update_parameters(module)  # the first call copies
    averages = Averages(averaged, module)
    for _ in range(3):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
            module.get_buffer("stem.norm.num_batches_tracked").add_(1)
        averages.update(decay)
        peer.update_parameters(module)
    torch.testing.assert_close(list(averaged.parameters()), list(peer.module.parameters()))
    assert averaged.get_buffer("stem.norm.num_batches_tracked") == 3


def test_averages_follow_weights_that_are_loaded() -> None:
    module = student()
    averaged = copy.deepcopy(module)
    averages = Averages(averaged, module)
    module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()})
    averages.update(0.0)
    assert all(map(torch.equal, tensors(averaged), tensors(module)))


def test_operators_are_replaced_only_meanwhile() -> None:
    before = torch.conv2d, functional.conv2d, torch.batch_norm
    with FastOperators():
        assert torch.conv2d is functional.conv2d is not before[0]
        assert torch.batch_norm is not before[2]
    assert (torch.conv2d, functional.conv2d, torch.batch_norm) == before
    with pytest.raises(TypeError), FastOperators():
        functional.conv2d(1, 2)  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert (torch.conv2d, functional.conv2d, torch.batch_norm) == before


def test_batches_for_a_cpu_are_handed_on(cpu: Fabric) -> None:
    given = [made_up(number, cpu.device) for number in range(3)]
    assert [id(batch) for batch in prefetch.on_own_stream(given, cpu.device)] == [
        id(batch) for batch in given
    ]


class Noisy(nn.Module):
    """A network that changes something on the host in every step."""

    def __init__(self, change: Callable[["Noisy"], object]) -> None:
        super().__init__()
        self.change, self.steps = change, 0
        self.kept: Tensor
        self.register_buffer("kept", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.change(self)
        return x


CHANGES: dict[str, Callable[[Noisy], object]] = {
    "random": lambda _: random.random(),
    "numpy": lambda _: np.random.rand(),
    "torch": lambda _: torch.rand(()),
    "count": lambda network: setattr(network, "steps", network.steps + 1),
    "buffer": lambda network: setattr(network, "kept", network.kept + 1),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_what_a_graph_would_miss_on_the_host_is_seen(change: str) -> None:
    network = Noisy(CHANGES[change])
    before = graphs.host_state(network), graphs.random_state()
    network(torch.zeros(1))
    assert (graphs.host_state(network), graphs.random_state()) != before


def small() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8, 3))


@pytest.mark.parametrize("build", [small, quantised])
def test_a_step_itself_changes_nothing_that_a_graph_would_miss(
    cpu: Fabric, build: Callable[[], nn.Module]
) -> None:
    module = build()
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.eval()  # draws on the CPU here, and on a GPU there
    step, _ = prepared(cpu, module, settings())
    step._operators = nullcontext()  # needed on CPUs alone
    step.begin()
    step(made_up(0, cpu.device), 0, 0.01)
    before = graphs.host_state(module), graphs.random_state()
    step(made_up(1, cpu.device), 1, 0.01)
    assert (graphs.host_state(module), graphs.random_state()) == before


def tiny(training: str, *, profiled: bool) -> loop_speed.Case:
    return loop_speed.Case(training, 32, 2, 2, "32-true", 1, 8, profiled)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_speed, "UNTIMED", 1)


@pytest.mark.usefixtures("at_once")
def test_the_loop_is_measured_beside_the_bare_step() -> None:
    row = loop_speed._beside_the_bare_step(tiny("distill", profiled=False), rounds=2)
    rates, ratio = row["images_per_second"], row["loop_to_eager"]
    assert min(rates["loop"], rates["eager"]) > 0
    assert ratio["low"] <= ratio["ratio"] <= ratio["high"]


@pytest.mark.usefixtures("at_once")
def test_python_and_operators_of_a_step_are_told_apart() -> None:
    found = loop_speed._loop(tiny("qat", profiled=True))
    assert min(found["microseconds_in_python"], found["microseconds_in_operators"]) > 0
    assert found["operators"] > 28  # each layer is at least one


def train_on(
    gpu: Fabric, module: nn.Module, training: TrainingSettings, sizes: list[int], terms: Any = None
) -> tuple[list[float], list[Tensor], Step]:
    """Losses, the weights and their averages afterwards, and the step, which has seen images of ``sizes``."""
    step, averaged = prepared(gpu, module, training, terms)
    module.train()
    torch.manual_seed(1)
    step.begin()
    given = (made_up(number, gpu.device, size) for number, size in enumerate(sizes))
    losses = [
        step(batch, number, 0.01 / (1 + number))
        for number, batch in enumerate(prefetch.on_own_stream(given, gpu.device))
    ]
    return torch.stack(losses).tolist(), tensors(module, averaged), step


REPLAYED = graphs.UNTIMED + 3 * graphs.TIMED
"""Number of steps of which the last ones are replayed."""


@on_a_gpu
@pytest.mark.parametrize("optimizer", list(optimisation.OPTIMIZERS))
def test_a_replayed_step_has_the_numbers_of_the_step_itself(
    gpu: Fabric, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, sizes = settings(optimizer=optimizer), [32] * REPLAYED + [64] * REPLAYED
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(Replayed, "_decide", lambda _: None)  # the graph stays, whichever is faster
    losses, weights, step = train_on(gpu, student(), training, sizes)
    assert step._replayed is not None
    assert step._replayed.graph is not None
    monkeypatch.setattr(Replayed, "__call__", lambda _, step, batch, __: step(batch))
    expected_losses, expected_weights, _ = train_on(gpu, student(), training, sizes)
    assert losses == pytest.approx(expected_losses, rel=1e-3)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-3, atol=1e-3)
    assert losses[-1] != losses[-2]


@on_a_gpu
def test_a_step_of_quantisation_aware_training_is_replayed(
    gpu: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Replayed, "_decide", lambda _: None)
    losses, _, step = train_on(gpu, quantised(), settings(), [32] * REPLAYED)
    assert step._replayed is not None
    assert step._replayed.graph is not None
    assert np.isfinite(losses).all()


@on_a_gpu
@pytest.mark.parametrize(
    "change",
    [
        lambda logits: logits[logits > logits.min()].sum().item(),
        lambda _: random.random(),
        lambda _: torch.rand(1),
    ],
    ids=["waits", "random", "torch"],
)
def test_a_step_that_a_graph_cannot_hold_runs_as_it_is(
    gpu: Fabric, change: Callable[[Tensor], object], capsys: pytest.CaptureFixture[str]
) -> None:
    own = loss_terms(OBJECTIVE, CONTRACT, SINGLE_LABEL)

    def terms(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        found = own(module, batch)
        change(found["kl"].detach()[None].expand(2))
        return found

    losses, _, step = train_on(gpu, student(), settings(), [32] * REPLAYED, terms)
    assert step._replayed is not None
    assert step._replayed.graph is None
    assert np.isfinite(losses).all()
    assert capsys.readouterr().err.count("test: ") == 1
