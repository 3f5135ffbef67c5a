"""What a file system may lack, known in one place: room, hard links, file locks; and modes that let others read.

Network and FUSE file systems lack some of it. Where there is another way it is taken; where there is none, the error
says what is missing (`file_lock.py`).
"""

import errno
import os
import re
from pathlib import Path

from deepspec.errors import DeepspecError

_LACKING = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
NO_LINKS = (*_LACKING, errno.EPERM, errno.EMLINK, errno.EXDEV)
NO_LOCKS = (*_LACKING, errno.ENOLCK)
_READABLE = 0o444
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SYSTEM_ERROR = re.compile(r"\b(?:os error|errno) ([0-9]+)\b", re.IGNORECASE)


def is_out_of_room(error: BaseException) -> bool:
    """Whether a foreign error says that a disk, or a user's quota on it, is full, whichever library it came through."""
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM
    if isinstance(error, DeepspecError):
        return False
    # Libraries that write files themselves (safetensors, pyarrow) pass the system's number on inside their own errors.
    return any(int(number) in _NO_ROOM for number in _SYSTEM_ERROR.findall(str(error)))


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
