"""A Prefect API server of our own for runs without one.

    python -m tasks.runtime.prefect.server_process PORT PARENT_PID

It writes to a log file (its caller redirects it) and ends when the process that started it is gone; server.py says why
it is not Prefect's own.
"""

import os
import sys
import threading
import time


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


def main() -> None:
    """Serve until terminated."""
    port, parent = int(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    import uvicorn

    uvicorn.run("prefect.server.api.server:create_app", factory=True, host="127.0.0.1", port=port, log_level="error")


if __name__ == "__main__":
    main()
