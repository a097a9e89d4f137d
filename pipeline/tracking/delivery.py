"""The results of the pipeline, delivered to MLflow now or later.

What cannot be delivered is kept and delivered by the next call, in the order in which it was made.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import files
from pipeline.tracking import addresses, outbox, patience, runs
from pipeline.tracking.outbox import Delivery
from pipeline.tracking.patience import Watch
from pipeline.tracking.records import TrackingError, TrackingServer, UnreachableError

RETRY_SECONDS = 5.0
"""Seconds after its first failure in which a request to a server is repeated."""


@dataclass(frozen=True)
class Outcome:
    """What was delivered."""

    run_id: str | None
    """Id of the parent run; None if the state was not delivered."""
    new: list[str]
    """Names of the variants that were logged for the first time."""
    problem: TrackingError | None
    """Why the state was not delivered."""
    late: list[str]
    """Hashes of earlier states that were delivered now."""
    undelivered: list[str]
    """Hashes of the states that are kept."""


def deliver(delivery: Delivery, server: TrackingServer, folder: Path) -> Outcome:
    """Deliver what is kept in a folder and then one more state, or keep that one, too.

    Args:
        delivery: the state.
        server: where to write. Each delivery goes to the experiment that it was made for.
        folder: folder of the kept deliveries.

    Raises:
        TrackingError: the state could not even be kept.
    """
    late: list[str] = []
    result, problem = None, None
    # Two processes that deliver at the same time would both make what neither has found.
    with files.locked(folder.with_name(f".{folder.name}.lock")):
        try:
            if addresses.is_local(server.address()):
                result = _deliver(delivery, server, folder, late, None)
            else:
                result = patience.patiently(
                    lambda watch: _deliver(delivery, server, folder, late, watch), server.address()
                )
        except TrackingError as error:
            problem = error
            outbox.keep(folder, delivery)
        kept = [place.name for place in outbox.waiting(folder)]
    run_id, new = result or (None, [])
    return Outcome(run_id, new, problem, late, kept)


def _deliver(
    delivery: Delivery, server: TrackingServer, folder: Path, late: list[str], watch: Watch | None
) -> tuple[str, list[str]]:
    for place in outbox.waiting(folder):
        if place.name != delivery.state.sha256:
            _track(outbox.read(place), server, watch)
            late.append(place.name)
            outbox.remove(place)
    result = _track(delivery, server, watch)
    outbox.remove(folder / delivery.state.sha256)
    return result


def _track(delivery: Delivery, server: TrackingServer, watch: Watch | None) -> tuple[str, list[str]]:
    """Deliver one state, and try again for some seconds if the server fails."""
    server = replace(server, experiment=delivery.experiment)
    failed: float | None = None
    while True:
        try:
            return runs.track(delivery.state, delivery.teacher, delivery.variants, server)
        except UnreachableError as error:
            failed = failed or time.monotonic()
            if watch is None or not error.passing or time.monotonic() - failed > RETRY_SECONDS:
                raise
            time.sleep(1)
