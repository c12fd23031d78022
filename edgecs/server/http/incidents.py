"""Bugs: what clients are told of them, and what the log says."""

from __future__ import annotations

import logging
import secrets

from edgecs.errors import ModelError

logger = logging.getLogger("edgecs")


class InternalError(ModelError):
    """A bug, in a sentence for clients; the log has the rest under the same id."""


def incident(what: str, error: BaseException) -> InternalError:
    """Log a bug with its traceback, and return what clients may know of it.

    what: what failed, for the log only. The text of an unexpected error may contain
    paths, prompts or addresses, so nothing of it is sent.
    """
    name = secrets.token_hex(4)
    logger.error("internal error %s: %s", name, what, exc_info=error)
    return InternalError(
        f"internal error {name}: the server's log has its cause under this id"
    )
