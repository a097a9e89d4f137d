"""Fingerprints of the code: one hash per stage over everything that can change the stage's results.

A fingerprint covers every module of this project that the stage imports, directly or not, with comments and
docstrings left out, the templates beside those modules, and the locked versions of the third-party packages
that these modules import. DVC depends on the fingerprints rather than on the files, so a stage reruns when
one of these changed, and only then.
"""

import hashlib
import sys
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
from grimp import ImportGraph
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline import provenance

PROJECT = ("pipeline", "students", "teachers")
"""Packages of this project that stages import."""

NO_RESULTS = ("pipeline.parameters", "pipeline.paths", "pipeline.process", "pipeline.errors")
"""Modules on which no result depends. DVC tracks the values of the parameters and the paths by itself."""

TEMPLATES = (".css", ".html", ".md")
"""Endings of files beside the modules that are part of the code."""

NO_RESULT_PACKAGES = ("jaxtyping", "psutil", "tqdm")
"""Third-party packages for annotations, process control and progress bars."""


def import_graph() -> ImportGraph:
    """The imports between the modules of this project and of third-party packages, without the parameters."""
    graph = grimp.build_graph(
        *PROJECT, include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )
    for module in [m for m in graph.modules if m.startswith(NO_RESULTS)]:
        graph.remove_module(module)
    return graph


def stage_names(root: Path) -> list[str]:
    """Names of the scripts in ``pipeline/stages/`` but ``check``, which writes the fingerprints."""
    scripts = (root / "pipeline" / "stages").glob("[a-z]*.py")
    return sorted(script.stem for script in scripts if script.stem != "check")


def fingerprints(root: Path) -> dict[str, str]:
    """Stage name to the SHA-256 of everything in code that can change the stage's results.

    Args:
        root: folder of the checkout, from which this project's packages are imported.
    """
    graph = import_graph()
    versions = locked_versions(root / "requirements.lock")
    distributions = packages_distributions()
    result = {}
    for stage in stage_names(root):
        script = f"pipeline.stages.{stage}"
        modules = graph.find_upstream_modules(script) | {script}
        own = {module for module in modules if module.split(".")[0] in PROJECT}
        digest = hashlib.sha256()
        for module in sorted(own | _packages_of(own)):
            for part in _parts(root, module):
                digest.update(part)
        for package in sorted(modules - own - sys.stdlib_module_names - {*NO_RESULT_PACKAGES}):
            for name in sorted({canonicalize_name(name) for name in distributions.get(package, ())}):
                digest.update(f"{name}=={versions.get(name)}\n".encode())
        result[stage] = digest.hexdigest()
    return result


def locked_versions(lock: Path) -> dict[str, str]:
    """Package name to its version in ``requirements.lock`` for this Python version."""
    lines = [line.partition("#")[0].strip() for line in lock.read_text().splitlines()]
    requirements = [Requirement(line) for line in lines if line]
    return {
        canonicalize_name(requirement.name): str(requirement.specifier)
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate()
    }


def _packages_of(modules: Iterable[str]) -> set[str]:
    """The packages that contain the modules; importing a module runs their ``__init__.py`` too."""
    parents = (module.split(".")[:depth] for module in modules for depth in range(1, module.count(".") + 1))
    return {".".join(parent) for parent in parents}


def _parts(root: Path, module: str) -> list[bytes]:
    """A module's plain code, and the templates beside it."""
    path = root / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    code = provenance.plain_code(file.read_text(encoding="utf-8"))
    templates = sorted(
        other
        for other in file.parent.iterdir()
        if other.suffix in TEMPLATES and not other.name.startswith((".", "#"))
    )
    return [module.encode(), code.encode(), *(other.read_bytes() for other in templates)]
