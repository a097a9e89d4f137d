"""Post-training steps on a small student, plain and with channels of very different scales."""

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline import cache, parameters, paths
from pipeline.models import storage
from pipeline.models.layers import trace
from pipeline.models.storage import Model, Quantization
from pipeline.onnx.judge import judge_files
from pipeline.parity import verification
from pipeline.quantization import post_training, rounding
from pipeline.quantization.calibrators import entropy_clip, percentile_clip
from pipeline.quantization.equalisation import equalise, rescale
from pipeline.quantization.post_training import Judge, Judgement, Workbench
from pipeline.quantization.ranges import BINS, Histogram
from pipeline.quantization.sensitivity import score_layers, simulate_together
from pipeline.quantization.settings import Step
from pipeline.quantization.simulator import leave_float, simulate
from pipeline.running import dvc_parent
from pipeline.stages import quantize
from pipeline.tasks import SINGLE_LABEL
from teachers.contract import InputContract
from tests import tiny_students
from tests.tiny_students import FLOAT_LAYERS, folded, photographs, relative_error, simulated

CONTRACT = InputContract(32)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def images(count: int) -> Tensor:
    return CONTRACT.normalise(photographs(count, CONTRACT.size))


def batches() -> Iterator[Tensor]:
    return tiny_students.calibration(CONTRACT)


def student(activation: str = "relu") -> Model:
    return tiny_students.student(CONTRACT, activation)


def without_norms(model: Model, module: nn.Module) -> Model:
    return Model(module, replace(model.card, arguments={**model.card.arguments, "norm": False}))


def badly_scaled() -> Model:
    """The small student with the same logits, its channels up to 8 times stronger or weaker."""
    model = student()
    network = folded(model)
    random = torch.Generator().manual_seed(2)
    for source, reader in network.neighbours():
        first, second = network.part(source.name), network.part(reader.name)
        factor = torch.exp2(torch.rand(len(first.weight), generator=random) * 6 - 3)
        rescale(first, second, factor, depthwise=reader.kind == "depthwise")
    return without_norms(model, network.module)


def quantized(model: Model, steps: Sequence[Step], float_layers: tuple[str, ...] = ()) -> Model:
    return tiny_students.quantized(model, 63, float_layers, tuple(steps))


def error(model: Model, steps: Sequence[Step], shown: Tensor | None = None) -> float:
    shown = images(32) if shown is None else shown
    return relative_error(simulated(quantized(model, steps))(shown), model.module(shown))


def test_badly_scaled_channels_do_not_change_the_float_student() -> None:
    shown = images(8)
    torch.testing.assert_close(badly_scaled().module(shown), student().module(shown), rtol=1e-3, atol=1e-3)


def test_equalising_wins_back_what_badly_scaled_channels_lose() -> None:
    usual = error(student(), ())
    lost = error(badly_scaled(), ())
    assert lost > 3 * usual
    assert error(badly_scaled(), ("equalisation",)) < 1.5 * usual


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_equalising_keeps_the_logits_of_the_calibration_images(activation: str) -> None:
    network = folded(student(activation))
    equal = equalise(network, batches)
    name = "blocks.3.depthwise"
    assert not torch.equal(equal.part(name).weight, network.part(name).weight)
    shown = torch.cat(list(batches()))
    torch.testing.assert_close(equal.module(shown), network.module(shown), rtol=1e-3, atol=1e-3)


def test_adaptive_rounding_errs_less_than_nearest_on_its_images_and_on_others() -> None:
    own, others = torch.cat(list(batches())), images(64)
    adaptive = [error(student(), ("adaptive_rounding",), shown) for shown in (own, others)]
    assert adaptive[0] < 0.8 * error(student(), ("bias_correction",), own)
    assert adaptive[1] < 0.8 * error(student(), (), others)


def test_adaptive_rounding_takes_each_weight_up_or_down_within_the_limit() -> None:
    rounded = quantized(student(), ["adaptive_rounding"])
    assert rounded.quantization is not None
    network, moved = trace(rounded.module), 0
    for name, layer in folded(student()).parts.items():
        step = rounded.quantization.weight_scales[name].view(-1, *[1] * (layer.weight.dim() - 1))
        integers = (network.part(name).weight / step).round()
        within = (layer.weight / step).clamp(-63, 63)
        assert (integers - within).abs().max() < 1 + 1e-3
        moved += int((integers != within.round()).sum())
    assert moved > 100


def test_flips_come_near_the_best_of_all_roundings() -> None:
    weight = torch.randn(1, 20, 9) * 3
    inputs = torch.randn(200, 9) @ torch.randn(9, 9)
    power = (inputs.T @ inputs / len(inputs))[None]
    seen = rounding.Moments(power, weight @ power, torch.zeros(1, 9), torch.zeros(1, 20))

    def errors(integers: Tensor) -> Tensor:
        apart = integers - weight
        return ((apart @ power) * apart).sum(dim=2)

    flipped = errors(rounding.choose(weight, torch.ones(1, 20, 1), seen, 63))
    nearest = errors(weight.round())
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=9)))
    best = torch.stack([errors(weight.floor() + ups) for ups in every]).amin(dim=0)
    assert (flipped <= nearest + 1e-4).all()
    assert flipped.mean() < 1.5 * best.mean()
    assert flipped.mean() < 0.5 * nearest.mean()


def histogram(counts: Tensor, greatest: float) -> Histogram:
    return Histogram(counts.double(), greatest)


def test_a_percentile_clips_what_is_rarer() -> None:
    counts = torch.zeros(BINS)
    counts[: BINS // 2] = 100
    counts[-1] = 1
    assert percentile_clip(histogram(counts, 8.0)) == pytest.approx(4.0, rel=1e-2)


def test_entropy_clips_a_thin_tail_and_keeps_a_thick_one() -> None:
    thick = histogram(torch.full((BINS,), 1000.0), 8.0)
    assert entropy_clip(thick) == pytest.approx(8.0, rel=0.02)
    thin = torch.histc(torch.randn(200_000).abs(), BINS, 0, 12.0)
    thin[-1] = 1
    assert 4.0 < entropy_clip(histogram(thin, 12.0)) < 8.0


def test_each_choice_of_ranges_gives_ranges_of_its_own() -> None:
    bench = Workbench(student(), batches, weight_limit=63, float_layers=())
    choices: list[tuple[Step, ...]] = [(), ("entropy_ranges",), ("percentile_ranges",)]
    scales = {bench.make(steps)[1].activation_scales["blocks.4.pointwise"] for steps in choices}
    assert len(scales) == 3


def runtime(model: Model, count: int = 64) -> Judge:
    pixels = photographs(count, CONTRACT.size)
    labels = model.module(CONTRACT.normalise(pixels)).argmax(dim=1).numpy()
    return judge_files(model, pixels.split(16), labels, SINGLE_LABEL, contract=CONTRACT, threads=1)


def test_the_steps_are_chosen_by_the_parents_answers() -> None:
    bench = Workbench(badly_scaled(), batches, weight_limit=63, float_layers=FLOAT_LAYERS)
    judge = runtime(badly_scaled())
    trials = post_training.choose(bench, judge)
    assert trials[0].steps == ()
    assert len(trials) == 1 + sum(map(len, post_training.ROUNDS))
    assert "equalisation" in post_training.applied(trials)
    kept = [trial.divergence for trial in trials if trial.kept]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < 0.3 * kept[0]
    again = judge(*bench.make(post_training.applied(trials)))
    assert float(again.divergences.mean()) == pytest.approx(kept[-1])
    assert "equalisation" in post_training.table(trials)


def test_a_recorded_choice_is_read_as_it_was(tmp_path: Path) -> None:
    bench = Workbench(badly_scaled(), batches, weight_limit=63, float_layers=FLOAT_LAYERS)
    trials = post_training.choose(bench, runtime(badly_scaled()))
    file = tmp_path / "ptq.json"
    assert cache.recall(file, post_training.TRIALS, lambda: trials) == trials
    assert cache.recall(file, post_training.TRIALS, lambda: pytest.fail("a second search")) == trials


def scripted(answers: Callable[[int], Judgement]) -> Judge:
    calls = itertools.count()
    return lambda *_: answers(next(calls))


@pytest.mark.parametrize("change", ["nothing", "steps", "question", "code", "damage", "no DVC"])
def test_a_network_that_another_variant_has_made_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(dvc_parent.STAGE, "build@int8-ptq")
    folder, model, given = paths.quantized("fp32"), student(), {"network": "one"}
    steps: list[Step] = ["adaptive_rounding"]
    bench = Workbench(model, batches, weight_limit=63, float_layers=FLOAT_LAYERS)
    network, quantization = quantize._make(folder, model, bench, given, steps)
    match change:
        case "steps":
            steps = [*steps, "bias_correction"]
        case "question":
            given = {"network": "another"}
        case "code":
            (tmp_path / paths.CODE).mkdir(parents=True)
            (tmp_path / paths.CODE / "quantize").write_text("another")
        case "damage":
            content = (folder / paths.WEIGHTS).read_bytes()
            (folder / paths.WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "no DVC":
            monkeypatch.delenv(dvc_parent.STAGE)
    made: list[Collection[Step]] = []
    monkeypatch.setattr(bench, "make", lambda steps: made.append(steps) or (network, quantization))
    again, same = quantize._make(folder, model, bench, given, steps)
    assert made == ([] if change == "nothing" else [steps])
    shown = images(4)
    assert torch.equal(simulate(again, same)(shown), simulate(network, quantization)(shown))
    assert same.activation_scales == quantization.activation_scales


def test_ties_go_to_what_is_simpler() -> None:
    bench = Workbench(student(), batches, weight_limit=63, float_layers=())
    noise = np.random.default_rng(0).normal(1, 0.5, (20, 100))
    judge = scripted(lambda call: Judgement(noise[call] - 0.01 * (call > 0), np.zeros(100), 0.9))
    trials = post_training.choose(bench, judge)
    assert post_training.applied(trials) == ()


def test_nearer_answers_are_refused_where_the_score_falls() -> None:
    bench = Workbench(student(), batches, weight_limit=63, float_layers=())
    nearer = scripted(
        lambda call: Judgement(np.full(100, 1.0 - 0.1 * call), np.zeros(100), 0.9 if call == 0 else 0.89)
    )
    trials = post_training.choose(bench, nearer)
    assert post_training.applied(trials) == ()


@pytest.mark.parametrize("float_layers", [(), FLOAT_LAYERS])
def test_a_file_with_all_steps_is_rebuilt_and_agrees_with_the_runtime(
    float_layers: tuple[str, ...], tmp_path: Path
) -> None:
    steps: tuple[Step, ...] = ("percentile_ranges", "equalisation", "adaptive_rounding", "bias_correction")
    model = quantized(badly_scaled(), steps, float_layers)
    storage.save(tmp_path / "model", model)
    again = storage.load(tmp_path / "model")
    pixels = photographs(8, CONTRACT.size)
    shown = CONTRACT.normalise(pixels)
    assert torch.equal(simulated(again)(shown), simulated(model)(shown))
    assert verification.verify(tiny_students.ship(again, tmp_path), again, pixels)["argmax"] == 1


def test_a_layer_that_reads_uneven_channels_is_the_most_sensitive() -> None:
    model = student()
    network = folded(model)
    first, second = network.part("blocks.3.pointwise"), network.part("blocks.4.depthwise")
    factor = torch.ones(len(first.weight))
    factor[1:] = 300.0
    rescale(first, second, factor, depthwise=True)
    uneven = without_norms(model, network.module)
    shown = images(16)
    expected = uneven.module(shown)

    def score(module: nn.Module) -> float:
        return -relative_error(module(shown), expected)

    scores = score_layers(uneven, batches, weight_limit=63, score=score)
    assert list(scores) == list(network.layers)
    worst = sorted(scores, key=lambda name: scores[name].alone)[:2]
    assert set(worst) == {"blocks.3.pointwise", "blocks.4.depthwise"}
    together = score(simulated(quantized(uneven, ())))
    assert all(scores[name].alone > together for name in scores if name not in worst)


@pytest.mark.parametrize(("mean", "layers"), [((0.485, 0.456, 0.406), 28), ((0.0, 0.5, 1.0), 27)])
def test_only_a_stem_whose_padding_is_too_far_from_zero_is_left_out_of_sensitivity(
    mean: tuple[float, float, float], layers: int
) -> None:
    contract = InputContract(CONTRACT.size, mean=mean, std=(0.25, 0.25, 0.25))
    model = tiny_students.student(contract)
    stored = list(tiny_students.calibration(contract))[:1]
    image = stored[0][:1]
    scores = score_layers(
        model, lambda: stored, weight_limit=63, score=lambda module: float(module(image).sum())
    )
    assert len(scores) == layers
    assert ("stem" in scores) is (layers == 28)
    together = simulate_together(model, lambda: stored, weight_limit=63)(stored[0])
    assert relative_error(together, model.module(stored[0])) < 0.5


def test_a_layer_left_float_takes_its_scales_along() -> None:
    model = tiny_students.int8_student(size=CONTRACT.size)
    quantization = model.quantization
    assert quantization is not None
    network = trace(model.module)
    part = leave_float(network, quantization, FLOAT_LAYERS)
    assert isinstance(part, Quantization)
    assert set(quantization.weight_scales) - set(part.weight_scales) == set(FLOAT_LAYERS)
    assert set(quantization.activation_scales) - set(part.activation_scales) == {"images", "stem"}
    simulate(network, part)


def test_two_choices_of_ranges_are_refused_in_one_line() -> None:
    both = ["entropy_ranges", "percentile_ranges", "equalisation"]
    with pytest.raises(parameters.ParameterError) as caught:
        parameters.load(changes={"quantize": {"ptq": both}})
    line = str(caught.value)
    assert f"quantize.ptq = {both}" in line
    assert "\n" not in line


@pytest.mark.parametrize("value", [-1.0, 1e-9])
def test_a_layer_that_no_image_wakes_is_quantised_and_shipped_as_it_is(tmp_path: Path, value: float) -> None:
    """A student may learn nothing; its file is as sound as any other, and its scores say what it is worth."""
    model = student()
    norm = model.module.get_submodule("blocks.9.pointwise.norm")
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.zeros_(norm.weight)
    nn.init.constant_(norm.bias, value)  # Beside 1e-9, the biases of the next layer need 45 bits.
    candidates: list[tuple[Step, ...]] = [(), ("percentile_ranges", "equalisation", "bias_correction")]
    for steps in candidates:
        bench = Workbench(model, batches, weight_limit=63, float_layers=())
        network, quantization = bench.make(steps)
        dead = replace(without_norms(model, network.module), quantization=quantization)
        assert all(scale > 0 for scale in quantization.activation_scales.values())
        assert (
            verification.verify(tiny_students.ship(dead, tmp_path), dead, photographs(4, 32))["argmax"] == 1
        )
