"""The ONNX file that a command is to use."""

from pathlib import Path

from pipeline import paths


def path_of(name: str) -> Path:
    """Path of an ONNX file that is given by its path or by the name of a variant."""
    from pipeline.onnx.inference import ModelFileError

    if name.endswith(".onnx"):
        return Path(name)
    if not paths.onnx(name).is_file():
        variants = (
            ", ".join(sorted(file.stem for file in paths.ONNX.glob("*.onnx"))) or f"none in {paths.ONNX}"
        )
        raise ModelFileError(f"{name!r} is neither a variant ({variants}) nor an .onnx file")
    return paths.onnx(name)
