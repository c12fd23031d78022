"""How a server on this machine and a client of the same user recognise each other.

Both know a random key from a file that only this user can read. The server proves that
it knows the key: it returns an HMAC of the client's nonce and of its own address, so
that another program on a port cannot pass on the proof of a server elsewhere. After
that the client sends the key, which counts as an API key.

Importing this loads nothing else of the library.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import NamedTuple

NONCE, PROOF = "x-edgecs-nonce", "x-edgecs-proof"
"""Headers of a request, and of its response."""
_NONCE = re.compile("[0-9a-f]{64}")
KEY = re.compile("[0-9a-f]{64}")


def new_nonce() -> str:
    """A random nonce."""
    return secrets.token_hex(32)


class LocalKey(NamedTuple):
    """A server's key and its address as clients on this machine write it."""

    key: str
    url: str

    @classmethod
    def new(cls, url: str) -> LocalKey:
        """A random key for a server."""
        return cls(secrets.token_hex(32), url)

    def proof(self, nonce: str) -> str | None:
        """The proof of a server for a nonce; None: that is not a nonce."""
        if not _NONCE.fullmatch(nonce):
            return None
        text = f"edgecs-server {self.url} {nonce}"
        return hmac.new(self.key.encode(), text.encode(), hashlib.sha256).hexdigest()

    def proves(self, nonce: str, proof: str) -> bool:
        """Whether a proof is right."""
        expected = self.proof(nonce)
        return expected is not None and hmac.compare_digest(
            expected.encode(), proof.encode()
        )
