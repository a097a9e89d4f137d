"""The metadata of a LiteRT file, in the form that TensorFlow Lite's tools read.

They are a flatbuffer of the published schema (metadata_schema.fbs in github.com/tensorflow/tflite-support)
in a buffer of the file, and an uncompressed ZIP archive of files that is appended to it.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence

import flatbuffers
import numpy as np

from pipeline.litert.flatfile import Grid

NAME = "TFLITE_METADATA"
"""Name of the metadata among those of the file."""
RELEASE = "min_runtime_version"
"""Name of the entry with the first release that runs the file."""
RELEASE_BYTES = 16
"""Length of that entry."""
LABELS = "labels.txt"
"""Name of the appended file with one label per line, in the order of the logits."""
DETAILS = "metadata.json"
"""Name of the appended file with the metadata of the ONNX file."""
IDENTIFIER = b"M001"
PARSER = "1.0.0"
"""First version of the metadata's format that has all these fields."""
AXIS_LABELS = 2
"""Kind of an appended file whose lines name the places along an axis."""
FEATURE, IMAGE, RGB, NORMALIZATION = 1, 2, 1, 1
"""Numbers of the schema for content that is plain numbers or an image, for its colours, and for a step that
normalises."""
MIDNIGHT = (1980, 1, 1, 0, 0, 0)
"""Time of the appended files, so that equal files are equal to the byte."""

Field = tuple[str, int] | None
"""Kind and content of a field of a table; None leaves it out."""


def release(version: str) -> bytes:
    """The content of the entry ``min_runtime_version``."""
    return version.encode().ljust(RELEASE_BYTES, b"\0")


def describe(
    *,
    name: str,
    description: str,
    license_: str,
    side: int,
    grid: Grid,
    rule: str,
    scores: str,
) -> bytes:
    """The flatbuffer.

    Args:
        name: name of the model.
        description: what it does, in a sentence.
        license_: its licence.
        side: side of the image in pixels.
        grid: what the bytes of the image stand for. As a normalisation it makes every byte itself, so that
            code that normalises and then quantises hands on the bytes unchanged.
        rule: how a photograph becomes the image, in words.
        scores: what the numbers of the output are, in words.
    """
    builder = flatbuffers.Builder(1024)

    def text(value: str) -> Field:
        return "offset", builder.CreateString(value)

    def many(fields: Sequence[int]) -> Field:
        builder.StartVector(4, len(fields), 4)
        for offset in reversed(fields):
            builder.PrependUOffsetTRelative(offset)
        return "offset", builder.EndVector()

    def floats(*values: int | float) -> Field:
        return "offset", builder.CreateNumpyVector(np.array(values, np.float32))

    def table(*fields: Field) -> int:
        return _table(builder, fields)

    def file(name: str, description: str, kind: int = 0) -> int:
        return table(text(name), text(description), ("byte", kind))

    size = table(("uint", side), ("uint", side))
    picture = table(("byte", RGB), ("offset", size))
    content = table(("byte", IMAGE), ("offset", picture))
    normalization = table(floats(grid.zero_point), floats(1 / float(grid.scale)))
    unit = table(("byte", NORMALIZATION), ("offset", normalization))
    stats = table(floats(255), floats(0))
    image = table(text("image"), text(rule), None, ("offset", content), many([unit]), ("offset", stats))
    labels = file(LABELS, "Labels in the order of the scores.", AXIS_LABELS)
    numbers = table(("byte", FEATURE), ("offset", table()))
    output = table(text("logits"), text(scores), None, ("offset", numbers), None, None, many([labels]))
    graph = table(text(name), text(description), many([image]), many([output]))
    details = file(DETAILS, "Origin, input rule and labels, as in the ONNX file.")
    model = table(
        text(name),
        text(description),
        None,
        many([graph]),
        None,
        text(license_),
        many([details]),
        text(PARSER),
    )
    builder.Finish(model, file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def append(content: bytes, labels: Sequence[str], details: Mapping[str, str]) -> bytes:
    """The file with a ZIP archive at its end; line breaks in a label become blanks in ``labels.txt``."""
    contents = {
        LABELS: "".join(f"{' '.join(label.splitlines())}\n" for label in labels),
        DETAILS: json.dumps(dict(details), indent=2, ensure_ascii=False) + "\n",
    }
    memory = io.BytesIO(content)
    with zipfile.ZipFile(memory, "a") as folder:  # its places count from the beginning of the file
        for name, text in contents.items():
            folder.writestr(zipfile.ZipInfo(name, MIDNIGHT), text)
    return memory.getvalue()


def _table(builder: flatbuffers.Builder, fields: Sequence[Field]) -> int:
    """Write a table whose fields are those of the schema, in its order."""
    builder.StartObject(len(fields))
    for slot, given in enumerate(fields):
        if given is None:
            continue
        kind, value = given
        if kind == "offset":
            builder.PrependUOffsetTRelativeSlot(slot, value, 0)
        elif kind == "byte":
            builder.PrependInt8Slot(slot, value, 0)
        else:
            builder.PrependUint32Slot(slot, value, 0)
    return builder.EndObject()
