"""What is worth a word about files that are used nevertheless."""

import logging
from collections import defaultdict

log = logging.getLogger(__name__)

_NAMED = 3


class Remarks:
    """Collects what was noticed, and says each thing once, with the number of files and the first of them."""

    def __init__(self) -> None:
        self._files: dict[str, list[str]] = defaultdict(list)

    def add(self, what: str, file: str) -> None:
        """Notes `what` about a file."""
        self._files[what].append(file)

    def report(self) -> None:
        """Logs a warning for each kind of remark, and forgets them."""
        for what, files in self._files.items():
            more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
            log.warning("%s%s: %s", ", ".join(files[:_NAMED]), more, what)
        self._files.clear()
