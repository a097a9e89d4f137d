"""The way to Hugging Face's hub: a repository, one commit, and one line for whatever fails."""

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi, constants, utils
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] - the base of all errors of its HTTP client
)
from huggingface_hub.utils._http import default_client_factory

from pipeline import resources
from pipeline.errors import DistilleryError

Value = TypeVar("Value")

THREAD = "request to the hub"
"""Name of the threads that ask the hub. One whose time has passed ends with the process."""
FIRST_SECONDS = 10.0
"""Seconds in which the hub has to take the token and to name the repository."""
PAUSE_SECONDS = 20.0
"""Seconds that a later request may stand still."""
BYTES_PER_SECOND = 20_000
"""Slowest upload that is waited for."""
RETRIES = 2
"""Number of refused or failed requests after which the upload ends; the library repeats those before."""
LONGEST_REASON = 300
"""Most characters of a server's words in a message."""
REASONS = {
    400: "the hub does not accept the content",
    401: "the token is not valid; log in anew with `hf auth login`, or set HF_TOKEN to one with write access",
    402: "the account has to be paid for this",
    403: "the token has no write access to it",
    404: "there is no such repository, or HF_ENDPOINT is not the address of a hub",
    409: "the repository was changed at the same time; repeat the command",
    413: "a file is larger than the hub allows",
    429: "there were too many requests; repeat the command later",
}
"""What a refusal means, by its HTTP status."""
FAILURE = "the hub failed; repeat the command later"
"""What a status of 500 or more means."""


class HubError(DistilleryError):
    """The upload failed; the message names the repository, the address and the reason, never the token."""


def check_name(repository: str) -> None:
    """Check the name of a repository before anything is written.

    Raises:
        HubError: it is not OWNER/NAME as the hub allows them.
    """
    try:
        utils.validate_repo_id(repository)
        named = "/" in repository
    except HFValidationError:
        named = False
    if not named:
        raise HubError(
            f"{repository!r} is not a valid repository; OWNER/NAME is expected, such as me/clothes: at most "
            "96 letters, digits, '-', '_' and '.', without '--' and '..', and with a letter or digit at both "
            "ends and no '.git'"
        )


def address(repository: str) -> str:
    """Address of the repository's page."""
    return f"{constants.ENDPOINT}/{repository}"


def upload(folder: Path, repository: str, *, private: bool, message: str) -> None:
    """Create the repository if it does not exist, and commit all files of a folder to it.

    Other files that the repository has stay there. The token is that of the environment or of the login.

    Args:
        folder: the files, without folders.
        repository: OWNER/NAME.
        private: whether only its owner may read it.
        message: of the commit.

    Raises:
        HubError: the hub does not answer or refuses, or there is no token.
    """
    check_name(repository)
    files = sorted(folder.iterdir())
    size = sum(file.stat().st_size for file in files)
    if constants.is_offline_mode():
        raise HubError(f"{address(repository)}: HF_HUB_OFFLINE is set, so that nothing can be uploaded")
    token = ""
    try:
        token = _within(FIRST_SECONDS, _token)
        if not token:
            raise HubError("there is no token: log in with `hf auth login`, or set HF_TOKEN")
        if not (token.isascii() and token.isprintable()):
            raise HubError("the token holds characters that no token has; is HF_TOKEN set to something else?")
        with _quiet(), _client():
            api = HfApi(endpoint=constants.ENDPOINT, token=token)
            _within(FIRST_SECONDS, lambda: _open(api, repository, private))
            operations = [CommitOperationAdd(file.name, file) for file in files]
            _within(
                3 * PAUSE_SECONDS + size / BYTES_PER_SECOND,
                lambda: api.create_commit(repository, operations, commit_message=message),
            )
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        reason = reason.replace(token, "***") if token else reason
        # Without the chain of causes, which hold the headers of the request.
        raise HubError(f"{address(repository)}: {reason}") from None


def _token() -> str:
    return huggingface_hub.get_token() or ""


def _open(api: HfApi, repository: str, private: bool) -> None:
    """Create the repository unless it exists.

    Raises:
        HubError: it exists and is public, but is to be private.
    """
    api.create_repo(repository, private=private or None, exist_ok=True)
    if private and not api.model_info(repository).private:
        raise HubError("it exists already and is public; make it private there, or leave out --private")


def _within(seconds: float, work: Callable[[], Value]) -> Value:
    """Run something that may hang, as a name that cannot be looked up or an answer that never ends.

    Raises:
        HubError: it takes longer.
    """
    values: list[Value] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            values.append(work())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=THREAD, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not values:
        raise HubError(f"no complete answer in {seconds:.0f} seconds")
    return values[0]


class _Patience:
    """What ends the library's repetitions early: it would repeat each failed request for half a minute."""

    def __init__(self) -> None:
        self.unanswered: set[tuple[str, str]] = set()
        self.failures = 0

    def ask(self, request: Any) -> None:
        """Refuse to repeat a request that was not answered."""
        key = request.method, str(request.url)
        if key in self.unanswered:
            raise HubError(f"no answer in {PAUSE_SECONDS:.0f} seconds, or the connection was closed")
        self.unanswered.add(key)

    def answered(self, response: Any) -> None:
        """Refuse to go on after too many refusals."""
        self.unanswered.discard((response.request.method, str(response.request.url)))
        if response.status_code in (408, 409, 429) or response.status_code >= 500:
            self.failures += 1
            if self.failures > RETRIES:
                raise HubError(_refusal(response.status_code, None))


@contextmanager
def _client() -> Iterator[None]:
    """Let the library's requests end in time, and upload over plain HTTP.

    The files have some megabytes, for which the protocol Xet, with a server and limits of its own, brings
    nothing.
    """
    patience = _Patience()

    def create() -> Any:
        client = default_client_factory()
        client.timeout = PAUSE_SECONDS
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], patience.ask],
            "response": [*hooks["response"], patience.answered],
        }
        return client

    without_xet = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = True
    huggingface_hub.set_client_factory(create)
    try:
        yield
    finally:
        huggingface_hub.set_client_factory(default_client_factory)
        constants.HF_HUB_DISABLE_XET = without_xet


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library from printing, since what it has to say is in its exceptions."""
    level, without_bars = utils.logging.get_verbosity(), utils.are_progress_bars_disabled()
    utils.logging.set_verbosity(logging.CRITICAL)
    utils.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        utils.logging.set_verbosity(level)
        if not without_bars:
            utils.enable_progress_bars()


def _reason(error: BaseException) -> str | None:
    """Why an upload failed, on one line; None if it is not about the hub."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HubError):
            return str(cause)
        if isinstance(cause, HfHubHTTPError):
            return _refusal(cause.response.status_code, cause.server_message)
        if isinstance(cause, HTTPError):
            return f"no answer ({_line(str(cause)) or type(cause).__name__})"
        cause = cause.__cause__
    if resources.recognise(error) is not None:
        return None
    if isinstance(error, ValueError) and "README.md" in str(error):
        return _line(str(error))
    return f"the answer is not that of a hub ({type(error).__name__}: {_line(str(error))})"


def _refusal(status: int, words: str | None) -> str:
    reason = REASONS.get(status, FAILURE if status >= 500 else "the hub refuses")
    said = f": {_line(words)}" if words else ""
    return f"{reason} (status {status}{said})"


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]} ..."
