"""Check all parameters before any work starts, and take the fingerprints of the code."""

import shutil
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline import fingerprint, parameters, paths
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
    differing = [key for key, value in default if getattr(current, key) != value]
    if differing:
        print(
            f"{paths.PARAMETERS} differs from the default composition of {paths.CONFIGS}/ in "
            f"{', '.join(differing)}; `dvc exp run -S KEY=VALUE` composes it anew"
        )
    paths.CHECKED.parent.mkdir(exist_ok=True)
    # Always the same content: a changed parameter reruns the stages that read it and no others.
    paths.CHECKED.write_text("parameters are valid\n")
    shutil.rmtree(paths.CODE, ignore_errors=True)
    paths.CODE.mkdir()
    for name, digest in fingerprint.fingerprints(Path()).items():
        (paths.CODE / name).write_text(f"{digest}\n")


if __name__ == "__main__":
    with stage():
        main()
