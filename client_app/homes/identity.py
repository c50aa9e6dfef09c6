"""A site's own identity: an Ed25519 key that says in every secure sum that it is the same site.

A ClientApp never has the key with which its SuperNode speaks to the SuperLink, and one that the server could hand out
would say nothing against it. So a site makes one, in its state-dir, readable by its owner alone. The public half stands
beside it, for other sites' owners to write into their policies (`pins`).
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrec.core.secret import own_bytes
from fedrec.core.whole_files import write_text

IDENTITY = "identity"


def own_identity(state_dir: Path) -> Ed25519PrivateKey:
    """The identity in `<state_dir>/identity`, made if there is none. Raises StoreError as `own_bytes` does."""
    key = Ed25519PrivateKey.from_private_bytes(own_bytes(state_dir, IDENTITY, "other sites have to pin the new one"))
    public = state_dir / f"{IDENTITY}.pub"
    text = key.public_key().public_bytes_raw().hex() + "\n"
    if not public.exists() or public.read_text(encoding="ascii", errors="replace") != text:
        write_text(public, text)
    return key
