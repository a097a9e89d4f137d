"""Check all parameters before any work starts, and take the fingerprints of the code."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline import files, fingerprint, lock_file, parameters, paths
from pipeline.data import sources
from pipeline.parameters import ParameterError
from pipeline.process import stage


def main() -> None:
    """Check the composed default of `configs/` and `params.yaml`; say where the two differ."""
    with initialize_config_dir(str(paths.CONFIGS.resolve()), version_base=None):
        try:
            composed = OmegaConf.to_container(compose("config"), resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise ParameterError(f"{paths.CONFIGS}: {' '.join(str(error).split())}") from error
    default = parameters.check(composed, str(paths.CONFIGS))
    current = parameters.load()
    lock_file.mend(current.variants)
    differing = [key for key, value in default if getattr(current, key) != value]
    if differing:
        print(
            f"{paths.PARAMETERS} differs from the default composition of {paths.CONFIGS}/ in "
            f"{', '.join(differing)}; `dvc exp run -S KEY=VALUE` composes it anew"
        )
    if current.data.path.exists():
        for note in sources.check_files(current.data.path):
            print(f"note: {note}")
    if current.probe.out_of_distribution is not None:
        from pipeline.inspection import out_of_distribution  # slow to import

        out_of_distribution.check_folder(current.probe.out_of_distribution)
    # Always the same content: a changed parameter reruns the stages that read it and no others.
    contents = {paths.CHECKED: "parameters are valid\n"}
    contents |= {
        paths.CODE / name: f"{digest}\n" for name, digest in fingerprint.fingerprints(Path()).items()
    }
    for other in {*paths.CODE.glob("*")} - {*contents}:
        other.unlink()
    for file, content in contents.items():
        # What stays the same is not touched: another `dvc repro` may be reading it.
        if not file.is_file() or file.read_text() != content:
            files.write(file, content)


if __name__ == "__main__":
    with stage():
        main()
