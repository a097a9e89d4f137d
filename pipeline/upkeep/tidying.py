"""The command that removes what nobody needs any more, and the line that says when it is worth while."""

from collections.abc import Collection
from pathlib import Path

from pipeline import paths
from pipeline.resources import size
from pipeline.upkeep import dvc_cache, leftovers
from pipeline.upkeep.leftovers import Leftover

STAYS = {
    paths.ARTIFACTS: "results, downloads, and checkpoints of trainings that go on",
    Path(
        ".dvc/cache"
    ): "results that the workspace, a branch, a tag or an experiment refers to; the run cache",
    Path("mlartifacts"): "files of the runs in MLflow",
    Path(".tiny"): "state of `make tiny`; `make clean` removes it",
}
"""What is not removed, and what it is."""

TOLD_BYTES, TOLD_SHARE = 1e9, 0.25
"""Least size of what can be removed, in bytes and as a share of all that the project takes, at which it is
worth a line."""


def tidy(variants: Collection[str], *, dry_run: bool) -> None:
    """Print what can be removed and what stays, with sizes, and remove it unless it is a trial.

    Args:
        variants: names of the variants that the parameters declare.
        dry_run: only print.

    Raises:
        BusyError: the pipeline runs in this folder.
        CacheError: DVC's cache lacks results of the workspace and cannot take them.
    """
    if not dry_run:
        leftovers.check_idle()
        dvc_cache.save()
    elif busy := leftovers.working(Path.cwd()):
        print(f"note: process {busy[0].pid} works in this folder; what it uses may be listed as well")
    found, cached, deleted = (
        leftovers.find(variants),
        leftovers.find_cached(),
        leftovers.find_deleted_runs(),
    )
    everything = [*found, *(part for part in (cached, deleted) if part)]
    for leftover in everything:
        _print("would remove" if dry_run else "removes", leftover)
    if not dry_run:
        leftovers.remove(found)
        if cached:
            leftovers.remove_cached()
        if deleted:
            leftovers.remove_deleted_runs()
    total = sum(leftover.bytes for leftover in everything)
    for path, what in STAYS.items():
        if path.exists():
            inside = sum(part.bytes for part in everything if part.path.is_relative_to(path))
            _print("stays", Leftover(path, leftovers.disk_usage(path) - (inside if dry_run else 0), what))
    print(f"{size(total)} {'can be removed: run it without --dry-run' if dry_run else 'removed'}")


def advice(variants: Collection[str]) -> str | None:
    """One line if much can be removed; None otherwise."""
    found = sum(leftover.bytes for leftover in leftovers.find(variants))
    found += sum(dvc_cache.unused().values())
    taken = sum(leftovers.disk_usage(path) for path in STAYS)
    if found < max(TOLD_BYTES, TOLD_SHARE * taken):
        return None
    return (
        f"about {size(found)} of {size(taken)} on the disk are not needed any more: "
        "`python -m pipeline tidy --dry-run` lists them"
    )


def _print(verb: str, leftover: Leftover) -> None:
    print(f"{verb:12} {size(leftover.bytes):>10}  {leftover.path}  ({leftover.reason})")
