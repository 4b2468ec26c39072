"""Run the server until it is told to stop; it then finishes what it accepted."""

import logging
import sys

from softvq.serve.app import Settings, create_app

GRACE = 30  # seconds for what was accepted


def serve(settings: Settings, host: str, port: int) -> None:
    """Blocks. Raises UserError where the model, plan, keys or store cannot be opened."""
    import uvicorn

    _log()
    _open_files()
    app = create_app(settings)
    logging.getLogger("softvq.serve").info("http://%s:%d/", host, port)
    uvicorn.run(
        app, host=host, port=port, log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=GRACE, timeout_keep_alive=15, backlog=2048,
    )  # fmt: skip


def _open_files() -> None:
    """As many connections as the system allows this process, where it has such a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _log() -> None:
    """One line for each thing that happened; no path, key, part or picture is ever in it."""
    log = logging.getLogger("softvq.serve")
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
