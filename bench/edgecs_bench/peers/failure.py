"""The error of a peer."""

from __future__ import annotations

from edgecs.errors import EdgecsError


class PeerFailed(EdgecsError):
    """A peer could not be installed, started or queried; other peers continue."""
