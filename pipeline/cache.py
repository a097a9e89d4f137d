"""What was measured on this machine, and what was chosen by it: one folder per user, outside of checkouts.

Times belong to a machine. Two clones that read the same times make the same choices, and so does a run that
is repeated: it takes the recorded choice. So do variants that would make the same search. Nothing here is
needed to use a result.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Protocol, TypeVar, runtime_checkable

from pydantic import Field, TypeAdapter, ValidationError

from pipeline import files
from pipeline.errors import DistilleryError
from pipeline.resources import ResourceError

Content = TypeVar("Content")
Measured = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
"""A time, or a ratio of times."""
MEASUREMENTS: TypeAdapter[dict[str, Measured]] = TypeAdapter(dict[str, Measured])
"""Names of what was measured, and the results."""


@runtime_checkable
class Schema(Protocol[Content]):
    """What a file holds; pydantic's ``TypeAdapter`` is one."""

    def validate_json(self, data: bytes, /) -> Content: ...

    def dump_json(self, instance: Content, /, *, indent: int) -> bytes: ...


class CacheError(DistilleryError):
    """The folder of this machine's measurements cannot be used."""


def read(file: Path, schema: Schema[Content]) -> Content | None:
    """The content of a JSON file; None if there is no such file.

    A file that does not fit the schema is left aside under another name, with a line that says so.

    Raises:
        CacheError: the file cannot be opened.
    """
    try:
        return schema.validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    except OSError as error:
        raise _unusable(file, error) from error
    try:
        files.set_aside(file, reason, "it is measured again")
    except OSError as error:
        raise _unusable(file, error) from error
    return None


def write(file: Path, schema: Schema[Content], content: Content) -> None:
    """Replace a JSON file.

    Raises:
        CacheError: the file cannot be written.
    """
    try:
        files.write(file, schema.dump_json(content, indent=2) + b"\n")
    except (OSError, ResourceError) as error:
        raise _unusable(file, error) from error


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Hold the lock of a file while the block runs; another process that wants it waits.

    So what two runs learn at once is not lost, what both would measure is measured once, and neither disturbs
    the other's measurement. The lock ends with the process, however that ends.

    Raises:
        CacheError: the folder cannot be used.
    """
    with ExitStack() as held:
        try:
            held.enter_context(files.locked(file.with_name(f".{file.name}.lock")))
        except OSError as error:
            raise _unusable(file, error) from error
        yield


def recall(file: Path, schema: Schema[Content], choose: Callable[[], Content]) -> Content:
    """The choice that a file records, or else the one that ``choose`` returns, which is recorded.

    Raises:
        CacheError: the folder or the file cannot be used.
    """
    with alone(file):
        choice = read(file, schema)
        if choice is None:
            choice = choose()
            write(file, schema, choice)
        return choice


def _unusable(file: Path, error: OSError | ResourceError) -> CacheError:
    reason = error.strerror or error if isinstance(error, OSError) else error
    return CacheError(
        f"{file}: {reason}; DISTILLERY_CACHE names another folder for this machine's measurements"
    )
