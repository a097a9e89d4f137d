"""Settings of the teacher, of the loss, and of every training on the teacher's outputs."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from pipeline.settings import ImageSize, Name, Settings
from pipeline.training.settings import TrainingSettings

Deviation = Annotated[float, Field(gt=0)]
"""A standard deviation, by which values are divided."""


class TeacherInput(Settings):
    """Corrections of the teacher's input; null keeps what the weights declare."""

    mean: tuple[float, float, float] | None = None
    """Mean of the red, green and blue channels in [0, 1], which is subtracted."""
    std: tuple[Deviation, Deviation, Deviation] | None = None
    """Standard deviation of the red, green and blue channels, by which the difference is divided."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Interpolation with which images are resized, with antialiasing."""

    @field_validator("mean", "std")
    @classmethod
    def _of_values_from_0_to_1(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if values and any(abs(value) > LARGEST_STATISTIC for value in values):
            divided = [round(value / 255, 4) for value in values]
            raise ValueError(f"this is for values from 0 to 255; for values in [0, 1] it is {divided}")
        return values


LARGEST_STATISTIC = 10.0
"""Greatest mean or standard deviation of values in [0, 1] that can be meant, whatever a teacher takes."""

Names = Annotated[
    str | tuple[str, ...] | None,
    BeforeValidator(lambda value: [*map(str, value)] if isinstance(value, list | tuple) else value),
]
"""Names in a list, where YAML may have read numbers; or a word or a file that stands for them."""


class TeacherMember(Settings):
    """One teacher and how it is adapted to the data."""

    source: Literal["efficientnet_lite", "hugging_face", "onnx", "student", "timm", "torchvision"]
    """Library that provides architecture and weights: a key of `teachers.sources.SOURCES`. `student` is a
    network with the architecture of a student, which `load` can take as a variant."""
    name: Name
    """Name of the model in that library, folder or hub id (`hugging_face`), or file (`onnx`). For `student`
    the file or folder of anything that `student.init.source` names, which is recognised by its content."""
    weights: Name | None = "default"
    """`default`, a name that the library knows, a local .safetensors or .pth file, or null for random
    weights."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """SHA-256 of the files of a `student`, as `python -m pipeline compress` writes it: other files at the
    same place end the run. null takes what lies there."""
    size: ImageSize | None = None
    """Height and width of the input in pixels; null takes the size that the weights declare."""
    input: TeacherInput = TeacherInput()
    """Corrections, which take precedence over what the weights declare."""
    labels: Names = None
    """Names of the logits of a teacher that is not adapted, in their order: a list, or a file with one name
    per line (.json: a list). `data` is the order of the classes in the data, `natural` the one in which
    numbers within names count by value (1, 2, 10). null takes the names that come with the weights; without
    any, there must be as many logits as classes, in the order of the data."""
    outputs: Literal["auto", "logits", "probabilities"] = "auto"
    """What a teacher that is not adapted returns. `auto` judges by the file and by the values on val."""
    doubtful: Literal["refuse", "accept"] = "refuse"
    """What happens if the score on val, or later on the images that students learn from, cannot be told from
    chance or is below it, or if another order of the logits fits val far better. `refuse` ends the run before
    anything is built on the teacher; `accept` prints a warning."""
    head: TrainingSettings | None = None
    """First training: a new classifier, the rest of the network frozen; null skips it."""
    full: TrainingSettings | None = None
    """Second training: the whole network; null skips it. If both are null, the teacher must already know the
    classes of the data."""

    @model_validator(mode="after")
    def _as_it_is(self) -> "TeacherMember":
        if any(self.parts().values()):
            for name, allowed in (("labels", None), ("outputs", "auto")):
                if getattr(self, name) != allowed:
                    raise ValueError(
                        f"{name}: only for a teacher that is taken as it is; with head or full, its last "
                        f"layer is replaced; allowed: {'null' if allowed is None else allowed}"
                    )
        return self

    def parts(self) -> dict[str, TrainingSettings | None]:
        """The trainings by name, in order."""
        return {"head": self.head, "full": self.full}


class TeacherSettings(TeacherMember):
    """The teacher. With an ensemble, it is the first member."""

    ensemble: tuple[TeacherMember, ...] = ()
    """Further members. The outputs of the ensemble are the mean of the probabilities of all members."""

    @property
    def members(self) -> tuple[TeacherMember, ...]:
        """All members of the ensemble, this teacher first."""
        return (
            TeacherMember(**{name: getattr(self, name) for name in TeacherMember.model_fields}),
            *self.ensemble,
        )


Weight = Annotated[float, Field(ge=0, le=1000)]
"""Weight of a part of the loss."""


class Objective(Settings):
    """Weights and options of the loss terms. A term with weight 0 is omitted."""

    kl: Weight = 1.0
    """Weight of the KL divergence from the outputs of the teacher (Hinton et al. 2015)."""
    standardised_kl: Weight = 0.0
    """Weight of the KL divergence of standardised logits (Sun et al. 2024)."""
    dkd: Weight = 0.0
    """Weight of decoupled knowledge distillation (Zhao et al. 2022)."""
    dist: Weight = 0.0
    """Weight of DIST: correlation within images and across the batch (Huang et al. 2022)."""
    cross_entropy: Weight = 0.0
    """Weight of the cross entropy with the labels."""
    temperature: Annotated[float, Field(ge=0.05, le=100)] = 1.0
    """Softmax temperature of all terms except cross entropy; each of them is multiplied by its square."""
    dkd_beta: Weight = 1.0
    """Weight within `dkd` of the classes other than the true one, whose own weight is 1; the paper uses 0.5
    to 8."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> "Objective":
        if not self.weights():
            raise ValueError("at least one term must have a weight above 0")
        return self

    def weights(self) -> dict[str, float]:
        """The weights of all terms that are not omitted."""
        terms = ("kl", "standardised_kl", "dkd", "dist", "cross_entropy")
        return {term: weight for term in terms if (weight := getattr(self, term))}

    @property
    def uses_teacher(self) -> bool:
        """Whether any term needs the outputs of the teacher."""
        return set(self.weights()) != {"cross_entropy"}


class StudentTraining(TrainingSettings):
    """How a student is trained on the outputs of the teacher and on the labels."""

    objective: Objective
    """The loss."""


class FineTuning(StudentTraining):
    """How a compressed variant is trained."""

    target: Literal["auto", "teacher", "parent"] = "auto"
    """Network whose outputs are learned: the teacher, whose outputs are stored, or the parent of the variant,
    which runs in every step. `auto` is the parent where it has passed the teacher on val."""


StartShare = Annotated[float, Field(ge=0, lt=1)] | Literal["auto"]
"""Share of the weights before a training."""


class DistillationSettings(Settings):
    """What distillation has besides a training on the outputs of the teacher."""

    answers: Literal["stored", "live", "endless"] = "stored"
    """Origin of the teacher's outputs. `stored`: they were computed once. `live`: the teacher runs in every
    step, on the same views. `endless`: the teacher runs in every step, on new views in every epoch."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Seed of the initial weights and of the order of the images, but not of the data and the views; null
    takes the global `seed`."""
    start_share: StartShare = 0.0
    """Share of the weights before the training in the mean with the trained ones, which becomes the variant
    (Wortsman et al. 2022, WiSE-FT, who recommend 0.5): for weights that are good before the training and
    forget in it. `auto` tries 0, 0.25, 0.5 and 0.75, and keeps the lowest cross entropy on val. The weights
    before the training must know the classes of the data: published ones that name them or have as many, or
    those of a parent variant; with random ones only 0 is allowed."""
