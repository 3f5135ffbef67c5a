"""What a file system may lack, known in one place: hard links, file locks; and modes that let others read.

Network and FUSE file systems lack some of it. Where there is another way it is taken; where there is none, the error
says what is missing (`file_lock.py`).
"""

import errno
import os
from pathlib import Path

_LACKING = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
NO_LINKS = (*_LACKING, errno.EPERM, errno.EMLINK, errno.EXDEV)
NO_LOCKS = (*_LACKING, errno.ENOLCK)
_READABLE = 0o444


def link(source: Path, target: Path) -> bool:
    """Give a file a second name; False where that is not possible.

    Raises:
        FileExistsError: the name is taken.
        OSError: the folder cannot be written.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return False
    return True


def readable_as_its_folder(file: Path) -> None:
    """Let everyone read a file who may read its folder, as for any new file.

    Libraries that write to a temporary file of their own leave it readable for its owner alone.
    """
    mode = file.stat().st_mode
    wanted = mode | (file.parent.stat().st_mode & _READABLE)
    if wanted != mode:
        file.chmod(wanted)
