import numpy as np
import pytest

from pipeline.inspection import corruptions
from pipeline.inspection.corruptions import Corruption


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Two pictures with gradual changes, so that blur changes something, too."""
    ramp = np.linspace(0, 255, 64)
    waves = 127 + 100 * np.sin(ramp[:, None] / 9) * np.cos(ramp[None] / 13)
    return np.stack([np.stack([waves, waves.T, 255 - waves], axis=2)] * 2).astype(np.uint8)


def test_there_are_fifteen_kinds_in_four_groups() -> None:
    assert len(corruptions.KINDS) == 15
    assert sorted(kind for group in corruptions.GROUPS.values() for kind in group) == sorted(
        corruptions.KINDS
    )


@pytest.mark.parametrize("kind", corruptions.KINDS)
def test_a_corruption_is_a_function_of_image_and_seed_and_leaves_the_global_generator_alone(
    kind: str, images: np.ndarray
) -> None:
    np.random.seed(5)
    first = corruptions.apply(images, Corruption(kind, 3), [7, 8])
    value = np.random.random()
    again = corruptions.apply(images[1:], Corruption(kind, 3), [8])
    np.random.seed(5)
    assert np.random.random() == value
    assert (first[1:] == again).all()
    assert first.shape == images.shape
    assert (first != images).any()


@pytest.mark.parametrize("kind", ["gaussian_noise", "impulse_noise", "defocus_blur", "contrast", "pixelate"])
def test_severity_five_is_further_from_the_image_than_severity_one(kind: str, images: np.ndarray) -> None:
    mild, strong = (
        np.abs(corruptions.apply(images, Corruption(kind, s), [1, 2]) - images.astype(float)).mean()
        for s in (1, 5)
    )
    assert strong > mild > 0


@pytest.mark.parametrize("kind", ["gaussian_noise", "glass_blur", "impulse_noise", "frost"])
def test_other_seeds_give_other_images(kind: str, images: np.ndarray) -> None:
    one, other = corruptions.apply(images, Corruption(kind, 2), [1, 2])
    assert (one != other).any()


def test_gaussian_noise_has_the_published_strength() -> None:
    grey = np.full((1, 128, 128, 3), 128, np.uint8)
    for severity, scale in enumerate((0.08, 0.12, 0.18), start=1):
        noisy = corruptions.apply(grey, Corruption("gaussian_noise", severity), [0])
        assert noisy.astype(float).std() / 255 == pytest.approx(scale, rel=0.03)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_images_that_processes_corrupt_are_the_same_and_in_order() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    alone = list(corruptions.batches(images, [3, 4]))
    assert len(alone) == len(corruptions.ALL)
    for one, other in zip(alone, corruptions.batches(images, [3, 4], workers=2), strict=True):
        np.testing.assert_array_equal(one, other)
