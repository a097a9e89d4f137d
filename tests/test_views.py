import numpy as np
import pytest
from PIL import Image

from pipeline.data import views
from pipeline.data.views import ViewSpace
from teachers.contract import InputContract, Interpolation

SPACE = ViewSpace(seed=7, crop_scale=(0.3, 0.9), crop_ratio=(0.75, 4 / 3), flip=0.5)
RANDOM = np.random.default_rng(0)
PICTURE = Image.fromarray(RANDOM.integers(0, 256, (40, 60, 3), dtype=np.uint8))


def test_a_view_is_a_pure_function_of_seed_image_and_number() -> None:
    view = views.draw(SPACE, 123, 4, 60, 40)
    assert view == views.draw(SPACE, 123, 4, 60, 40)
    other_seed = SPACE.model_copy(update={"seed": 8})
    others = [views.draw(SPACE, 123, 5, 60, 40), views.draw(SPACE, 124, 4, 60, 40)]
    assert view not in [*others, views.draw(other_seed, 123, 4, 60, 40)]


def test_crops_lie_in_the_image_and_in_the_space() -> None:
    for number in range(200):
        left, top, right, bottom = views.draw(SPACE, 2**64 - 1, number, 60, 40).box
        assert 0 <= left < right <= 60
        assert 0 <= top < bottom <= 40
        assert 0.3 - 1e-9 <= (right - left) * (bottom - top) / 2400 <= 0.9 + 1e-9
        assert 0.75 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9


def test_about_half_of_the_views_are_flipped() -> None:
    flipped = sum(views.draw(SPACE, key, 0, 60, 40).flip for key in range(1000))
    assert 430 < flipped < 570


def test_an_impossible_crop_takes_the_whole_image() -> None:
    wide = ViewSpace(seed=0, crop_scale=(1.0, 1.0), crop_ratio=(4.0, 4.0), flip=0.0)
    assert views.draw(wide, 1, 1, 10, 10).box == (0, 0, 10, 10)


def test_teacher_and_student_see_the_same_crop_at_their_own_sizes() -> None:
    smooth = Image.fromarray(np.linspace(0, 255, 60 * 40 * 3).reshape(40, 60, 3).astype(np.uint8))
    view = views.draw(SPACE, 5, 0, 60, 40)
    large = views.render(smooth, view, InputContract(128))
    small = views.render(smooth, view, InputContract(32))
    shrunk = large.resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(shrunk, float) - np.asarray(small, float)).mean() < 3


def test_a_flip_mirrors_the_pixels() -> None:
    view = views.View((0.0, 0.0, 60.0, 40.0), flip=False)
    mirrored = views.View(view.box, flip=True)
    plain = np.asarray(views.render(PICTURE, view, InputContract(32)))
    np.testing.assert_array_equal(
        np.asarray(views.render(PICTURE, mirrored, InputContract(32))), plain[:, ::-1]
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("colour", [(1.0, 1.0, 1.0), (0.6, 1.2, 1.3)])
def test_a_grey_image_has_the_pixels_of_the_same_image_in_colour(
    interpolation: Interpolation, colour: tuple[float, float, float]
) -> None:
    grey = PICTURE.convert("L")
    for size in (17, 96):
        contract = InputContract(size, interpolation=interpolation)
        view = views.View((3.2, 1.5, 47.1, 38.8), True, colour)
        alike, plain = (views.render(image, view, contract) for image in (grey.convert("RGB"), grey))
        assert plain.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(plain), np.asarray(alike))


def test_colours_lie_in_their_space_and_leave_the_crop_as_it_was() -> None:
    coloured = SPACE.model_copy(update={"colour": 0.4})
    drawn = [views.draw(coloured, key, 2, 60, 40) for key in range(100)]
    factors = np.array([view.colour for view in drawn])
    assert 0.6 <= factors.min() < 0.65
    assert 1.35 < factors.max() <= 1.4
    plain = [views.draw(SPACE, key, 2, 60, 40) for key in range(100)]
    assert [(view.box, view.flip) for view in drawn] == [(view.box, view.flip) for view in plain]
    dark = views.View((0.0, 0.0, 60.0, 40.0), False, (0.5, 1.0, 1.0))
    bright = views.View(dark.box, False)
    pixels = [np.asarray(views.render(PICTURE, view, InputContract(32)), float) for view in (dark, bright)]
    assert np.abs(pixels[0] - pixels[1] / 2).max() <= 1


def test_a_mixture_is_a_pure_function_and_as_frequent_as_asked() -> None:
    space = SPACE.model_copy(update={"mixup": 0.3, "cutmix": 0.5})
    drawn = [views.draw_mixture(space, key, 3, 50) for key in range(1000)]
    assert drawn == [views.draw_mixture(space, key, 3, 50) for key in range(1000)]
    assert drawn[:50] != [views.draw_mixture(space, key, 4, 50) for key in range(50)]
    blended = [m for m in drawn if m is not None and m.patch is None]
    patched = [m for m in drawn if m is not None and m.patch is not None]
    assert 250 < len(blended) < 350
    assert 450 < len(patched) < 550
    assert {m.partner for m in [*blended, *patched]} == set(range(50))
    assert 0.45 < np.mean([m.weight for m in blended]) < 0.55
    assert views.draw_mixture(SPACE, 1, 3, 50) is None


def test_a_patch_covers_what_its_weight_leaves_and_a_blend_weighs_both() -> None:
    white, black = (Image.new("RGB", (100, 100), colour) for colour in ("white", "black"))
    space = SPACE.model_copy(update={"mixup": 0.5, "cutmix": 0.5})
    seen = 0
    for key in range(60):
        mixture = views.draw_mixture(space, key, 0, 9)
        assert mixture is not None
        share = np.asarray(views.mix(white, black, mixture), float).mean() / 255
        assert share == pytest.approx(mixture.weight, abs=0.03)
        seen += mixture.patch is not None
    assert 15 < seen < 45


def test_the_centred_square_keeps_its_share_of_the_shorter_side() -> None:
    assert InputContract(32, crop=0.5).centre_box(60, 40) == (20, 10, 40, 30)
    assert InputContract(32).centre_box(60, 40) == (10, 0, 50, 40)
