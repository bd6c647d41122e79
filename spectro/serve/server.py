"""uvicorn, told what to end before it waits for the requests that are going on."""

from collections.abc import Callable
from types import FrameType

import uvicorn


class Server(uvicorn.Server):
    """A server that calls something when it is told to stop.

    Args:
        config: uvicorn's own settings.
        before_stop: is called before the server waits for requests to end; None for nothing.
    """

    def __init__(self, config: uvicorn.Config, before_stop: Callable[[], object] | None = None) -> None:
        super().__init__(config)
        self._before_stop = before_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        if self._before_stop is not None:
            self._before_stop()
        super().handle_exit(sig, frame)
