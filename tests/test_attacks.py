import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.inspection import attacks
from teachers.contract import InputContract

CONTRACT = InputContract(8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


@pytest.fixture
def linear() -> nn.Module:
    """A classifier that is linear, so that the best attack is known."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3)).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (6, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def loss(module: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(module(CONTRACT.normalise(images)), labels, reduction="none")


@pytest.mark.parametrize("radius", [1, 4])
def test_attacks_stay_in_the_ball_and_raise_the_loss(
    linear: nn.Module, images: torch.Tensor, radius: int
) -> None:
    labels = attacks.predict(linear, CONTRACT, images)
    before = loss(linear, images, labels)
    for moved in (
        attacks.fgsm(linear, CONTRACT, images, labels, radius),
        attacks.pgd(linear, CONTRACT, images, labels, radius, steps=10, seed=0),
    ):
        assert moved.dtype == torch.uint8
        assert (moved.int() - images.int()).abs().max() == radius
        assert (loss(linear, moved, labels) > before).all()


def test_a_greater_radius_raises_the_loss_further(linear: nn.Module, images: torch.Tensor) -> None:
    labels = attacks.predict(linear, CONTRACT, images)
    near, far = (
        loss(linear, attacks.pgd(linear, CONTRACT, images, labels, r, steps=10, seed=0), labels)
        for r in (1, 8)
    )
    assert (far > near).all()


def test_fgsm_of_two_linear_classes_is_the_best_attack_within_the_ball(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(3 * 8 * 8, 2)
    module = nn.Sequential(nn.Flatten(), linear).eval()
    labels = torch.zeros(6, dtype=torch.long)
    inside = images.clamp(4, 251)
    moved = attacks.fgsm(module, CONTRACT, inside, labels, 4)
    weight = linear.weight[1] - linear.weight[0]
    best = inside.int() + 4 * weight.view(3, 8, 8).permute(1, 2, 0).sign().int()
    assert (moved.int() == best).all()


def test_pgd_depends_on_its_seed_alone(linear: nn.Module, images: torch.Tensor) -> None:
    labels = attacks.predict(linear, CONTRACT, images)
    one, two, other = (
        attacks.pgd(linear, CONTRACT, images, labels, 4, steps=2, seed=seed) for seed in (0, 0, 1)
    )
    assert (one == two).all()
    assert (one != other).any()
