"""DVC's cache: whether it holds every result, and which of its files nothing refers to any more.

`dvc repro` ends with status 0 when the cache is full: it says so in a line among many, writes the stage into
`dvc.lock` all the same, and makes the result again on the next run.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dvc.exceptions import CollectCacheError, DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.scm import NoSCM

from pipeline import resources
from pipeline.errors import DistilleryError
from pipeline.resources import size


class CacheError(DistilleryError):
    """DVC cannot be asked, or its cache lacks results; the message says what to do."""


@contextmanager
def opened() -> Iterator[Repo]:
    """DVC's repository of this folder, locked, so that no `dvc repro` changes it at the same time."""
    for name in ("dvc", "dvc_data", "dvc_objects"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with Repo() as repo, repo.lock:
            yield repo
    except LockError as error:
        raise CacheError("DVC is at work in this folder; try again when it has finished") from error
    except DvcException as error:
        if resources.is_exhausted(error):
            raise
        raise CacheError(f"DVC: {' '.join(str(error).split())}") from error


def folder() -> Path:
    """The folder of DVC's cache, in which the name of a file is its hash.

    Raises:
        CacheError: this folder is not one of DVC's.
    """
    try:
        with Repo() as repo:
            return Path(repo.cache.local.path)
    except DvcException as error:
        raise CacheError(f"DVC: {' '.join(str(error).split())}") from error


def save() -> tuple[str, ...]:
    """Put results of the workspace that DVC's cache lacks into it, and return their paths.

    A result is what `dvc.lock` describes: a file that was changed afterwards is left alone, and so is one
    that is missing, as in a new clone.

    Raises:
        CacheError: the cache cannot take them.
    """
    with opened() as repo:
        unsaved = [out for out in _outputs(repo) if out.changed_cache() and not out.workspace_status()]
        _remove_cut(repo)
        for out in unsaved:
            out.commit(relink=False)
        _remove_cut(repo)
        missing = [out for out in unsaved if out.changed_cache()]
        if missing:
            needed = sum(out.meta.size or 0 for out in missing)
            cache = Path(repo.cache.local.path)
            raise CacheError(
                f"DVC's cache {cache} lacks {', '.join(map(str, missing))} ({size(needed)}), and "
                f"{resources.where(cache)}; they are in the workspace, but the next `dvc repro` makes them "
                "again: free space there, then run `python -m pipeline save`"
            )
        return tuple(map(str, unsaved))


def unused() -> dict[Path, int]:
    """Files of DVC's cache that nothing refers to, with their sizes in bytes.

    They are results of earlier states of the workspace, and what a full disk or a kill has cut. A cache
    outside this folder may serve other projects: nothing of it is listed.
    """
    with opened() as repo:
        return _unused(repo)


def _remove_cut(repo: Repo) -> None:
    """Remove what a full disk or a kill has cut in the cache. While DVC is locked, nobody writes there."""
    if _is_own(repo):
        for file in Path(repo.cache.local.path).parents[1].rglob(".*.tmp"):
            file.unlink(missing_ok=True)


def _is_own(repo: Repo) -> bool:
    """Whether the cache is inside this folder; another one may serve other projects."""
    return Path(repo.cache.local.path).is_relative_to(repo.root_dir)


def _outputs(repo: Repo) -> Iterator[Any]:
    """Outputs in DVC's cache that `dvc.lock` describes."""
    for stage in repo.index.stages:
        yield from (out for out in stage.outs if out.use_cache and out.hash_info)


def _unused(repo: Repo) -> dict[Path, int]:
    if not _is_own(repo):
        return {}
    folder = Path(repo.cache.local.path)
    used: set[str | None] = set()
    # The workspace, and whatever git has a name for.
    named = not isinstance(repo.scm, NoSCM)
    for _ in repo.brancher(all_branches=named, all_tags=named, all_experiments=named):
        for out in _outputs(repo):
            used.add(out.hash_info.value)
            # A folder whose listing is not in the cache, as in a new clone, cannot be restored from there.
            with suppress(CollectCacheError):
                used |= {entry.value for entries in out.get_used_objs().values() for entry in entries}
    files = {file: file.stat().st_size for file in folder.glob("??/*") if file.is_file()}
    return {file: count for file, count in files.items() if file.parent.name + file.name not in used}
