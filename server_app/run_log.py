"""The log of a run in its folder. One that cannot be written ends no run, and prints no stack trace for every line."""

from __future__ import annotations

import logging
import sys

from typing_extensions import override

from fedrec.core.disk import is_of_the_disk, reason


class RunLog(logging.FileHandler):
    """A file of log lines; what the disk refuses is said once, on standard error."""

    @override
    def handleError(self, record: logging.LogRecord) -> None:
        """Say once that the log is not whole; anything but the disk is logging's own business."""
        error = sys.exception()
        if error is None or not is_of_the_disk(error):
            super().handleError(record)
        elif not getattr(self, "_said", False):
            self._said = True
            print(f"the log {self.baseFilename} cannot be written ({reason(error)})", file=sys.stderr)

    @override
    def close(self) -> None:
        """Close the file; what could not be written was said before."""
        try:
            super().close()
        except OSError as error:
            if not is_of_the_disk(error):
                raise
