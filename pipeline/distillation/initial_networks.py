"""The networks that distillation begins with: a student with its initial weights, or a variant."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from torch import nn

from pipeline import paths
from pipeline.models import initialisation, storage
from pipeline.models.settings import StudentSettings
from pipeline.training import results
from students.mobilenet_v1 import scaled_channels
from teachers.contract import InputContract
from teachers.errors import WeightsError


class InitialNetwork(NamedTuple):
    """The network that a training begins with."""

    architecture: str
    contract: InputContract
    origin: str
    """Where the weights come from, in words."""
    build: Callable[[tuple[str, ...]], tuple[nn.Module, dict[str, Any]]]
    """Function from the names of the classes to the network and the arguments that rebuild it."""
    knows: Callable[[tuple[str, ...]], bool]
    """Whether the network classifies these classes before the training; else its last layer is new."""

    def check_share(self, classes: tuple[str, ...], start_share: float | Literal["auto"], place: str) -> None:
        """Check that the weights can be part of a mean.

        Args:
            classes: names of the classes of the data.
            start_share: see ``DistillationSettings``.
            place: section of the parameters that has this setting.

        Raises:
            WeightsError: they do not know the classes.
        """
        if start_share and not self.knows(classes):
            raise WeightsError(
                f"{place}.start_share = {start_share}: {self.origin}: these do not know the classes of the "
                "data, so that the last layer is new and no mean with it would classify; allowed: 0"
            )


def student(settings: StudentSettings, crop: float) -> InitialNetwork:
    """A student with the initial weights of its settings, evaluated on a centred square of side ``crop``.

    Raises:
        WeightsError: the weights cannot be read.
    """
    init = settings.init
    weights = initialisation.SOURCES[init.source](init.path) if init else initialisation.RANDOM
    contract = InputContract(settings.size, weights.mean, weights.std, crop=crop)

    def build(classes: tuple[str, ...]) -> tuple[nn.Module, dict[str, Any]]:
        arguments = {
            "channels": scaled_channels(settings.width),
            **weights.arguments,
            **settings.overrides(),
            "classes": len(classes),
            "size": contract.size,
            "norm_momentum": settings.norm_momentum,
            "dropout": settings.dropout,
        }
        return initialisation.network(settings.architecture, arguments, classes, weights), arguments

    def knows(classes: tuple[str, ...]) -> bool:
        return initialisation.known_classes(classes, weights) is not None

    return InitialNetwork(settings.architecture, contract, weights.origin, build, knows)


def variant(name: str) -> InitialNetwork:
    """A finished variant of the same classes, as it is."""
    model = storage.load(paths.model(name))
    results.check_parent(model.card)
    card = model.card
    return InitialNetwork(
        card.architecture,
        card.input,
        card.start,
        lambda _: (model.module, card.arguments),
        lambda _: True,
    )
