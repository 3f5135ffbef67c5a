"""Locks between the processes of one machine, as files."""

from typing import Any

import filelock

from deepspec.errors import ArtifactError
from deepspec.file_system import NO_LOCKS


class FileLock(filelock.FileLock):
    """A lock that ends with its process.

    Where `flock` is missing altogether (ENOSYS) the file itself is the lock; the next process takes over the file of
    one that was killed.
    """

    def acquire(self, *args: Any, **settings: Any) -> Any:
        """As filelock's.

        Raises:
            ArtifactError: the file system has no locks.
        """
        try:
            return super().acquire(*args, **settings)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise ArtifactError(
                f"The file system here cannot lock files: {error.strerror}.",
                where=str(self.lock_file),
                remedy="Mount it with file locks, or point DEEPSPEC_HOME at a local disk; the store may stay there.",
            ) from error
