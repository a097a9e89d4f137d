"""Fingerprints of the code: one hash per stage over everything that can change the stage's results.

A fingerprint covers every module of this project that the stage imports, directly or not, with comments and
docstrings left out, the templates beside those modules, and the locked versions of the third-party packages
that these modules import. DVC depends on the fingerprints rather than on the files, so a stage reruns when
one of these changed, and only then.
"""

import hashlib
import sys
from collections.abc import Iterable
from functools import cache, partial
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
from grimp import ImportGraph
from grimp.exceptions import SourceSyntaxError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline import provenance
from pipeline.errors import DistilleryError

PROJECT = ("pipeline", "students", "teachers")
"""Packages of this project that stages import."""

NO_RESULTS = (
    "pipeline.parameters",
    "pipeline.paths",
    "pipeline.errors",
    "pipeline.resources",
    "pipeline.running",
)
"""Modules that are left out. DVC tracks the paths and the values of the parameters by itself; the settings of
the packages, which the parameters put together, belong to the packages."""

TEMPLATES = (".css", ".html", ".js", ".md")
"""Endings of templates, which are part of the code of the modules that name them."""

NO_RESULT_PACKAGES = ("jaxtyping", "psutil", "tqdm")
"""Third-party packages for annotations, process control and progress bars."""


class CodeError(DistilleryError):
    """A file of the code cannot be read; the message names it."""


def import_graph() -> ImportGraph:
    """The imports between the modules of this project and of third-party packages, without the parameters."""
    try:
        graph = grimp.build_graph(
            *PROJECT, include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
        )
    except (SourceSyntaxError, OSError, UnicodeError) as error:
        raise CodeError(f"the imports of {', '.join(PROJECT)} cannot be read: {error}") from error
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
    parts = cache(partial(_parts, root))  # most modules belong to many stages
    result = {}
    for stage in stage_names(root):
        script = f"pipeline.stages.{stage}"
        modules = _with_settings(graph, graph.find_upstream_modules(script) | {script})
        own = {module for module in modules if module.split(".")[0] in PROJECT}
        digest = hashlib.sha256()
        for module in sorted(own | _packages_of(own)):
            for part in parts(module):
                digest.update(part)
        for package in sorted(modules - own - sys.stdlib_module_names - {*NO_RESULT_PACKAGES}):
            for name in sorted({canonicalize_name(name) for name in distributions.get(package, ())}):
                digest.update(f"{name}=={versions.get(name)}\n".encode())
        result[stage] = digest.hexdigest()
    return result


def _with_settings(graph: ImportGraph, modules: set[str]) -> set[str]:
    """The modules with the settings of their packages, which a stage gets through the parameters."""
    packages = {".".join(module.split(".")[:2]) for module in modules}
    settings = {f"{package}.settings" for package in packages} & graph.modules
    return modules.union(settings, *(graph.find_upstream_modules(module) for module in settings))


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
    """A module's plain code, and the templates beside it that it names or that these include."""
    path = root / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    source = file.read_text(encoding="utf-8")
    beside = [
        other for other in sorted(file.parent.iterdir()) if other.suffix in TEMPLATES and other.is_file()
    ]
    templates: list[Path] = []
    text = source
    while named := [other for other in beside if other not in templates and other.name in text]:
        templates += named
        text = "".join(other.read_text(encoding="utf-8") for other in named)
    code = provenance.plain_code(source)
    return [module.encode(), code.encode(), *(other.read_bytes() for other in sorted(templates))]
