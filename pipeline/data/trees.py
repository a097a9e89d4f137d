"""What a folder holds: links are followed, loops end, and what is no plain file is listed with its reason."""

import heapq
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

SkipKind = Literal["hidden", "link", "unreadable"]

_LEFT_BEHIND = {
    "__macosx": "left behind by an archive of macOS",
    "$recycle.bin": "the waste basket of Windows",
    "recycler": "the waste basket of Windows",
    "system volume information": "kept by Windows",
    "@eadir": "thumbnails of a Synology server",
    "#recycle": "the waste basket of a Synology server",
    "@recycle": "the waste basket of a QNAP server",
    "lost+found": "kept by a Linux file system",
}
"""Folders that systems leave among photographs, apart from hidden ones, by their name in lower case."""

_SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""Description by the type of what is neither a file nor a folder."""


MOST_NAMES = 10
"""Number of names that a message lists before it counts the others."""


@dataclass(frozen=True)
class Skipped:
    """One thing below a folder that is not taken for a file of it."""

    path: Path
    reason: str
    kind: SkipKind
    """``hidden``: by its name. ``link``: a link to a folder that is listed already. ``unreadable``: a link to
    nothing, a pipe, a socket, a device, or a folder that could not be listed."""


@dataclass
class Tree:
    """Everything below a folder, at any depth, in order."""

    root: Path
    files: list[Path] = field(default_factory=list)
    """Plain files, and links to them."""
    folders: list[Path] = field(default_factory=list)
    """Folders and links to them, except hidden ones and links to what is listed elsewhere."""
    linked: list[Path] = field(default_factory=list)
    """The folders among them that are links."""
    skipped: list[Skipped] = field(default_factory=list)


def walk(root: Path) -> Tree:
    """List everything below a folder.

    Each folder is listed once: real folders first, then what links lead to, first those that are less deep. A
    link to a folder that contains it, or that is listed elsewhere, is skipped, so that loops end.
    """
    tree = Tree(root)
    # A link to a folder around the root would take in the root's own folders again.
    seen: dict[tuple[int, int], Path] = {}
    for place in (root, *root.resolve().parents):
        if identity := _identity(place):
            seen[identity] = place
    pending: list[tuple[Path, str | None]] = [(root, None)]
    links: list[tuple[int, Path, str | None]] = []
    while pending or links:
        if pending:
            folder, aside = pending.pop()
        else:
            _, folder, aside = heapq.heappop(links)
            identity = _identity(folder)
            if identity is None or identity in seen:
                place = seen[identity] if identity else folder
                around = "contains it" if place in (root, *root.resolve().parents) else "is read itself"
                reason = f"a link to {printable(place)}, which {around}"
                tree.skipped.append(Skipped(folder, reason, "link"))
                continue
            seen[identity] = folder
            if aside is None:
                tree.linked.append(folder)
        try:
            with os.scandir(folder) as entries:
                names = [(entry.name, entry.is_symlink()) for entry in entries]
        except OSError as error:
            reason = f"a folder that could not be listed: {error.strerror}"
            tree.skipped.append(Skipped(folder, reason, "unreadable"))
            continue
        for name, is_link in names:
            path = folder / name
            reason = aside or _hidden(name)
            mode, identity, trouble = _look(path)
            if trouble:
                tree.skipped.append(Skipped(path, trouble, "unreadable"))
            elif stat.S_ISDIR(mode):
                if reason is None:
                    tree.folders.append(path)
                if is_link:
                    heapq.heappush(links, (len(path.parts), path, reason))
                else:
                    seen.setdefault(identity, path)
                    pending.append((path, reason))
            elif reason is not None:
                tree.skipped.append(Skipped(path, reason, "hidden"))
            else:
                tree.files.append(path)
    skipped_folders = {item.path for item in tree.skipped if item.kind == "link"}
    tree.files.sort()
    tree.folders = sorted(folder for folder in tree.folders if folder not in skipped_folders)
    tree.skipped.sort(key=lambda item: item.path)
    return tree


def printable(path: Path | str) -> str:
    r"""Return a path on one line: bytes in other encodings and control characters as escapes (``\xe4``)."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def head(lines: Sequence[str]) -> list[str]:
    """Return the first lines of a list, and how many more there are."""
    more = len(lines) - MOST_NAMES
    return [*lines[:MOST_NAMES], f"... and {more:,} more"] if more > 0 else list(lines)


def quote(texts: Sequence[str]) -> str:
    """Return the first of several texts in quotes, and how many more there are."""
    shown = ", ".join(f"`{printable(text)}`" for text in texts[:MOST_NAMES])
    return f"{shown} and {len(texts) - MOST_NAMES:,} more" if len(texts) > MOST_NAMES else shown or "none"


def obstacles(tree: Tree) -> list[str]:
    """List, with its reason, whatever DVC cannot hash below a folder: it would stop or wait for ever.

    DVC does not look behind links to folders.
    """
    reasons = {item.path: item.reason for item in tree.skipped if item.kind == "unreadable"}
    for path in [*tree.folders, *tree.files]:
        try:
            os.fsencode(path.name).decode()
        except UnicodeDecodeError:
            reasons.setdefault(path, "its name is not in UTF-8")
        if not os.access(path, os.R_OK):
            reasons.setdefault(path, "it may not be read")
    linked = set(tree.linked)
    return [
        f"{printable(path.relative_to(tree.root))} ({reason})"
        for path, reason in sorted(reasons.items())
        if linked.isdisjoint(path.parents)
    ]


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _look(path: Path) -> tuple[int, tuple[int, int], str | None]:
    """Return mode and identity of what a path leads to, and what is wrong with it."""
    try:
        status = path.stat()
    except FileNotFoundError:
        trouble = "a link to nothing" if path.is_symlink() else "it vanished while the folder was listed"
        return 0, (0, 0), trouble
    except (OSError, RuntimeError) as error:
        return 0, (0, 0), f"it could not be looked at: {getattr(error, 'strerror', None) or error}"
    special = _SPECIAL.get(stat.S_IFMT(status.st_mode))
    trouble = f"{special}, not a file" if special else None
    return status.st_mode, (status.st_dev, status.st_ino), trouble


def _hidden(name: str) -> str | None:
    if reason := _LEFT_BEHIND.get(name.lower()):
        return f"{printable(name)}: {reason}"
    return f"{printable(name)} is hidden: its name begins with a dot" if name.startswith(".") else None
