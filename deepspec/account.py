"""Who runs this."""

import getpass
import os


def who() -> str:
    """The person or machine account that runs this; DEEPSPEC_USER overrides it."""
    try:
        return os.environ.get("DEEPSPEC_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
