"""Post-training steps on a small student, plain and with channels of very different scales."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline import parameters
from pipeline.models import storage
from pipeline.models.storage import Model, Quantization
from pipeline.onnx import export
from pipeline.quantization import post_training, rounding, simulator
from pipeline.quantization.calibrators import entropy_clip, percentile_clip
from pipeline.quantization.equalisation import equalise, neighbours
from pipeline.quantization.post_training import Judgement, Step, Workbench
from pipeline.quantization.simulator import BINS, Histogram, is_depthwise, layers, simulate
from pipeline.tasks import SINGLE_LABEL
from tests.test_quantization import FLOAT_LAYERS, folded, photographs, relative_error, student


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def whole_bytes(count: int) -> Tensor:
    return (photographs(count) * 255).round() / 255


@functools.cache
def calibration() -> Tensor:
    torch.manual_seed(1)
    return whole_bytes(32)


def batches() -> Iterator[Tensor]:
    return iter(calibration().split(8))


@functools.cache
def badly_scaled() -> Model:
    """The small student with the same logits, its channels up to 8 times stronger or weaker."""
    torch.manual_seed(2)
    model = student()
    module = folded(model).requires_grad_(False)
    parts = layers(module)
    for source, reader in neighbours(module):
        first, second = parts[source], parts[reader]
        factor = torch.exp2(torch.rand(len(first.weight)) * 6 - 3)
        first.weight /= factor.view(-1, 1, 1, 1)
        assert first.bias is not None
        first.bias.div_(factor)
        along = (-1, 1) if is_depthwise(second) else (1, -1)
        second.weight *= factor.view(*along, *[1] * (second.weight.dim() - 2))
    return Model(module, replace(model.card, arguments={**model.card.arguments, "norm": False}))


def error(model: Model, steps: Sequence[Step], limit: int = 63, images: Tensor | None = None) -> float:
    module, found = post_training.quantize(model, batches, weight_limit=limit, steps=steps)
    shown = whole_bytes(32) if images is None else images
    return relative_error(simulate(module, found)(shown), model.module(shown))


def test_badly_scaled_channels_do_not_change_the_float_student() -> None:
    images = whole_bytes(8)
    torch.testing.assert_close(badly_scaled().module(images), student().module(images), rtol=1e-3, atol=1e-3)


def test_equalising_wins_back_what_badly_scaled_channels_lose() -> None:
    usual = error(student(), ())
    lost = error(badly_scaled(), ())
    assert lost > 3 * usual
    assert error(badly_scaled(), ("equalisation",)) < 1.5 * usual


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_equalising_keeps_the_logits_of_the_calibration_images(activation: str) -> None:
    module = folded(student(activation)).requires_grad_(False)
    equal = equalise(module, batches)
    assert not torch.equal(
        layers(equal)["blocks.3.depthwise"].weight, layers(module)["blocks.3.depthwise"].weight
    )
    torch.testing.assert_close(equal(calibration()), module(calibration()), rtol=1e-3, atol=1e-3)


def test_every_layer_but_the_last_has_one_reader() -> None:
    pairs = neighbours(folded(student()))
    assert len(pairs) == 27
    assert pairs[0] == ("stem", "blocks.0.depthwise")
    assert pairs[-1] == ("blocks.12.pointwise", "classifier")


def test_adaptive_rounding_errs_less_than_nearest_on_its_images_and_on_others() -> None:
    own, others = calibration(), whole_bytes(64)
    adaptive = [error(student(), ("adaptive_rounding",), images=images) for images in (own, others)]
    assert adaptive[0] < 0.8 * error(student(), ("bias_correction",), images=own)
    assert adaptive[1] < 0.8 * error(student(), (), images=others)


def test_adaptive_rounding_takes_each_weight_up_or_down_within_the_limit() -> None:
    module = folded(student()).requires_grad_(False)
    rounded, found = post_training.quantize(student(), batches, weight_limit=63, steps=["adaptive_rounding"])
    moved = 0
    for name, layer in layers(module).items():
        step = found.weight_scales[name].view(-1, *[1] * (layer.weight.dim() - 1))
        integers = (layers(rounded)[name].weight / step).round()
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

    chosen = errors(rounding.choose(weight, torch.ones(1, 20, 1), seen, 63))
    nearest = errors(weight.round())
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=9)))
    best = torch.stack([errors(weight.floor() + ups) for ups in every]).amin(dim=0)
    assert (chosen <= nearest + 1e-4).all()
    assert chosen.mean() < 1.5 * best.mean()
    assert chosen.mean() < 0.5 * nearest.mean()


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
    plain, entropy, percentile = (
        bench.make(steps)[1].activations["blocks.4.pointwise"].scale for steps in choices
    )
    assert len({plain, entropy, percentile}) == 3


def runtime(model: Model, count: int = 64) -> post_training.Judge:
    pixels = (whole_bytes(count) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    labels = model.module(pixels.permute(0, 3, 1, 2) / 255).argmax(dim=1).numpy()
    return post_training.judge_files(model, pixels.split(16), labels, SINGLE_LABEL, threads=1)


def test_what_is_applied_is_chosen_by_the_parents_answers() -> None:
    bench = Workbench(badly_scaled(), batches, weight_limit=63, float_layers=FLOAT_LAYERS)
    judge = runtime(badly_scaled())
    module, found, candidates = post_training.choose(bench, judge)
    assert candidates[0].steps == ()
    assert len(candidates) == 1 + sum(map(len, post_training.ROUNDS))
    assert "equalisation" in post_training.applied(candidates)
    kept = [c.divergence for c in candidates if c.kept]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < 0.3 * kept[0]
    again = judge(module, found)
    assert float(again.divergences.mean()) == pytest.approx(kept[-1])
    assert "equalisation" in post_training.table(candidates)


def told(answers: Callable[[int], Judgement]) -> post_training.Judge:
    calls = itertools.count()
    return lambda *_: answers(next(calls))


def test_ties_go_to_what_is_simpler() -> None:
    bench = Workbench(student(), batches, weight_limit=63, float_layers=())
    noise = np.random.default_rng(0).normal(1, 0.5, (20, 100))
    *_, candidates = post_training.choose(
        bench, told(lambda call: Judgement(noise[call] - 0.01 * (call > 0), 0.9))
    )
    assert post_training.applied(candidates) == ()


def test_nearer_answers_are_refused_where_the_score_falls() -> None:
    bench = Workbench(student(), batches, weight_limit=63, float_layers=())
    nearer = told(lambda call: Judgement(np.full(100, 1.0 - 0.1 * call), 0.9 if call == 0 else 0.89))
    *_, candidates = post_training.choose(bench, nearer)
    assert post_training.applied(candidates) == ()


@pytest.mark.parametrize("float_layers", [(), FLOAT_LAYERS])
def test_a_file_with_all_steps_is_rebuilt_and_agrees_with_the_runtime(
    float_layers: tuple[str, ...], tmp_path: Path
) -> None:
    steps: tuple[Step, ...] = ("percentile_ranges", "equalisation", "adaptive_rounding", "bias_correction")
    module, found = post_training.quantize(
        badly_scaled(), batches, weight_limit=63, float_layers=float_layers, steps=steps
    )
    made = Model(module, badly_scaled().card, found)
    storage.save(tmp_path / "model", made)
    again = storage.load(tmp_path / "model")
    images = whole_bytes(8)
    assert again.quantization is not None
    answers = simulate(again.module, again.quantization)(images)
    assert torch.equal(answers, simulate(module, found)(images))
    file = tmp_path / "model.onnx"
    export.export(again, file, export.metadata_for(again.card, found))
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    assert export.verify(file, again, pixels)["argmax"] == 1


def test_a_layer_that_reads_uneven_channels_is_the_most_sensitive() -> None:
    model = student()
    module = folded(model).requires_grad_(False)
    parts = layers(module)
    factor = torch.ones(len(parts["blocks.3.pointwise"].weight))
    factor[1:] = 300.0
    parts["blocks.3.pointwise"].weight /= factor.view(-1, 1, 1, 1)
    bias = parts["blocks.3.pointwise"].bias
    assert bias is not None
    bias /= factor
    parts["blocks.4.depthwise"].weight *= factor.view(-1, 1, 1, 1)
    uneven = Model(module, replace(model.card, arguments={**model.card.arguments, "norm": False}))
    images = whole_bytes(16)
    wanted = uneven.module(images)

    def score(network: nn.Module) -> float:
        return -relative_error(network(images), wanted)

    found = post_training.sensitivity(uneven, batches, weight_limit=63, score=score)
    assert list(found) == list(parts)
    worst = sorted(found, key=lambda name: found[name].alone)[:2]
    assert set(worst) == {"blocks.3.pointwise", "blocks.4.depthwise"}
    whole = score(simulate(*post_training.quantize(uneven, batches, weight_limit=63, steps=())))
    assert all(found[name].alone > whole for name in found if name not in worst)


def test_a_stem_that_does_not_read_bytes_is_left_out_of_sensitivity() -> None:
    model = student()
    card = replace(model.card, input=replace(model.card.input, mean=(0.5, 0.5, 0.5)))
    found = post_training.sensitivity(
        Model(model.module, card),
        batches,
        weight_limit=63,
        score=lambda network: float(network(calibration()[:1]).sum()),
    )
    assert "stem" not in found
    assert len(found) == 27


def test_a_layer_left_float_takes_its_scales_along() -> None:
    module, found = post_training.quantize(student(), batches, weight_limit=63)
    part = simulator.leave_float(module, found, ["stem", "blocks.0.depthwise"])
    assert isinstance(part, Quantization)
    assert set(found.weight_scales) - set(part.weight_scales) == {"stem", "blocks.0.depthwise"}
    assert set(found.activations) - set(part.activations) == {"images", "stem"}


def test_two_choices_of_ranges_are_refused_in_one_line() -> None:
    both = ["entropy_ranges", "percentile_ranges", "equalisation"]
    with pytest.raises(parameters.ParameterError) as caught:
        parameters.load(changes={"quantize": {"ptq": both}})
    line = str(caught.value)
    assert f"quantize.ptq = {both}" in line
    assert "entropy_ranges and percentile_ranges exclude each other" in line
    assert "\n" not in line
