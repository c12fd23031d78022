"""How a peer fails, in one sentence."""

from __future__ import annotations

from edgecs.errors import EdgecsError


class PeerFailed(EdgecsError):
    """A peer could not be installed, started or heard out; the others go on."""
