"""The folder that a variant goes to Hugging Face's hub in: what ships, and weights for transformers."""

from pathlib import Path

import numpy as np
import torch
from huggingface_hub import ModelCard
from transformers import MobileNetV1ForImageClassification

from pipeline import paths
from pipeline.models import hugging_face, storage
from pipeline.models.hugging_face import NotExpressibleError
from pipeline.onnx import inference
from pipeline.onnx.inference import Classifier
from pipeline.shipping import folder as shipped

README = "README.md"
"""Name of the model card on the hub."""
PROBES = 4
"""Number of images on which the weights for transformers are compared with the ONNX file."""
TOLERANCE = 1e-3
"""Greatest difference of a logit that two float runtimes may have, as a share of the largest logit."""
LICENSES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0
    cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
    cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license
    ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 gemma gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0
    lgpl-lr llama2 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other
    pddl postgresql unknown unlicense wtfpl zlib
    """.split()  # noqa: SIM905 - one per line would be seventy lines
)
"""Identifiers of licences that the hub takes, https://huggingface.co/docs/hub/repositories-licenses."""
TRANSFORMERS = """
## Use with transformers

`config.json`, `model.safetensors` and `preprocessor_config.json` are the same network for the library
transformers:

```python
from transformers import pipeline

classify = pipeline("image-classification", model="{repository}")
print(classify("photo.jpg"))
```

Its logits are those of `{file}` for the same pixels. transformers resizes the whole image before it crops, so
its pixels of a photograph are not quite those that the scores above were measured with.
"""
"""Section of the card about the weights for transformers."""


def complete(classifier: Classifier, folder: Path, student: Path | None, repository: str) -> str | None:
    """Turn a shipped folder into what goes to the hub.

    Args:
        classifier: the variant.
        folder: its shipped folder.
        student: folder of the student that the ONNX file was exported from; None if it is not known.
        repository: OWNER/NAME on the hub.

    Returns:
        Why there are no weights for transformers, in words; None if there are.
    """
    reason = None
    if student is None or not (student / paths.CARD).is_file():
        reason = f"the folder of the student that {classifier.path} was exported from is not known"
    else:
        try:
            _write_weights(classifier, student, folder)
        except NotExpressibleError as error:
            reason = str(error)
    if (folder / shipped.CARD).is_file():
        text = (folder / shipped.CARD).read_text()
        usage = TRANSFORMERS.format(repository=repository, file=classifier.path.name)
        (folder / README).write_text(_front_matter(text, reason is None) + (usage if reason is None else ""))
        (folder / shipped.CARD).unlink()
    shipped.write_sums(folder)
    return reason


def _write_weights(classifier: Classifier, student: Path, folder: Path) -> None:
    """Write weights for transformers, and compare their answers with those of the ONNX file.

    Raises:
        NotExpressibleError: transformers has no such network, or its answers differ.
    """
    model = storage.load(student)
    files = hugging_face.write(model, folder)
    pixels = np.random.default_rng(0).integers(
        0, 256, (PROBES, *(classifier.contract.size,) * 2, 3), np.uint8
    )
    network = MobileNetV1ForImageClassification.from_pretrained(folder)
    with torch.inference_mode():
        theirs = network(model.card.input.normalise(torch.from_numpy(pixels))).logits.numpy()
    ours = np.concatenate(list(inference.run(classifier, [pixels])))
    difference = np.abs(theirs - ours).max() if theirs.shape == ours.shape else np.inf
    if not difference <= TOLERANCE * max(1.0, np.abs(ours).max()):
        for file in files:
            file.unlink()
        raise NotExpressibleError(
            f"the weights in {student} do not answer as {classifier.path} does (logits differ by up to "
            f"{difference:.3g}): one of them is newer"
        )


def _front_matter(text: str, with_weights: bool) -> str:
    """The card with metadata that the hub takes."""
    card = ModelCard(text)
    data = card.data
    if (license := data.get("license")) not in LICENSES and license is not None:
        data["license"], data["license_name"] = "other", license
    if with_weights:
        data["library_name"] = "transformers"
        data["tags"] = list(dict.fromkeys([*data.get("tags", []), "onnx", "transformers"]))
    return str(card)
