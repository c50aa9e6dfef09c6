"""The ServerApp: from the run configuration's overrides to a run.

What a run needs is imported when it begins. Flower loads the two apps one after the other before it starts Ray, and
torch takes seconds: like this Ray starts meanwhile.
"""

from __future__ import annotations

import logging
import shlex
import sys

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Compose the configuration once and carry out the run; an error ends the run as failed."""
    from fedrec.config.compose import compose
    from fedrec.config.paths import settle
    from server_app.run import run

    log = logging.getLogger("fedrec")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        overrides = shlex.split(str(context.run_config["overrides"]))
        run(settle(compose(overrides, base=None), None), overrides, grid)
    finally:
        log.removeHandler(handler)
