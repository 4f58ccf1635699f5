"""Lock a folder, so that one run writes to it at a time."""

import fcntl
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO
from weakref import WeakSet

from utils.errors import UserError

NAME = ".lock"
LOCKS: "WeakSet[FolderLock]" = WeakSet()


def close_inherited_locks() -> None:
    """Close the locks that a forked process has inherited.

    A loader worker may outlive a killed run by seconds. The lock must not.
    """
    for lock in LOCKS:
        lock.close()


os.register_at_fork(after_in_child=close_inherited_locks)


class FolderLock:
    """Lock a folder, which is made if it does not exist. The end of the process ends the lock, too."""

    def __init__(self, folder: Path, flag: str = "--save-dir") -> None:
        """Take the lock. flag: the flag that names the folder, for messages.

        Raises:
            UserError: the folder cannot be written, or somebody else has the lock.
        """
        self.folder = folder
        self.flag = flag
        self.made_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        self.file = self._take()
        LOCKS.add(self)

    def retake_if_lost(self) -> None:
        """Take the lock again if its file or the folder was removed. Call this before anything is written.

        Raises:
            UserError: somebody else has taken the lock since.
        """
        try:
            held = os.path.samestat(os.fstat(self.file.fileno()), (self.folder / NAME).stat())
        except FileNotFoundError:
            held = False
        if not held:
            removed = self.file
            self.file = self._take()
            removed.close()

    def _take(self) -> IO[str]:
        """Make the folder, and open and lock the file in it. A file system without locks gives a warning only.

        Raises:
            UserError: the folder cannot be written, or somebody else has the lock.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # not emptied, and not through a link: it may be somebody else's
            file = os.fdopen(os.open(self.folder / NAME, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w")
        except OSError as error:
            raise UserError(f"{self.flag} {self.folder} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(f"{self.flag} {self.folder} is in use by another run") from None
        except OSError as error:
            place = f"{self.flag} {self.folder}"
            print(f"{place} cannot be locked ({error.strerror}): start no second run in it", file=sys.stderr)
        return file

    def close(self) -> None:
        """Close the file of the lock. The lock ends when no process has it open any more."""
        self.file.close()

    def release(self) -> None:
        """End the lock. Remove its file, and the folders made for it, where nothing else was written there."""
        with suppress(OSError):  # somebody else removed or filled it
            if os.listdir(self.folder) == [NAME]:
                (self.folder / NAME).unlink()
                for path in self.made_folders:
                    path.rmdir()
        self.close()
