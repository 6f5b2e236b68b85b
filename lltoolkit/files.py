"""Writing files so that a reader or a kill at any moment finds the old file or the new one, never half of one."""

import os
from collections.abc import Callable, Iterable
from glob import escape
from pathlib import Path

_PART = ".{stem}.{owner}.part{suffix}"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file beside `path`, then move it to `path`.

    The data reach the disk before the name does (write, fsync, rename, fsync of the folder).

    Parameters
    ----------
    path : Path
        The file to make or to replace; its folder exists.
    write : callable
        Is given the temporary path and writes the whole file there.
    """
    # Same suffix, since writers such as numpy append their own; a leading dot hides it from listings.
    temporary = path.with_name(_PART.format(stem=path.stem, owner=os.getpid(), suffix=path.suffix))
    try:
        write(temporary)
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def require_folder(folder: Path, *, of: Path | None = None) -> None:
    """Make a folder and check that files can be written into it.

    Parameters
    ----------
    folder : Path
        It may be there already.
    of : Path, optional
        The file that it is for, to be named in an error instead.

    Raises
    ------
    OSError
        Naming the reason and the next step.
    """
    probe = folder / f".{os.getpid()}.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"0")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        reason = f"{of or folder} can't be written ({error.strerror})"
        raise type(error)(error.errno, f"{reason}. Choose another path or mend the folder's rights") from error


def leftovers(path: Path) -> Iterable[Path]:
    """Find what writers of `path` left beside it when they were killed."""
    return path.parent.glob(_PART.format(stem=escape(path.stem), owner="*", suffix=escape(path.suffix)))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
