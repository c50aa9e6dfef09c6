"""The cryptography of a secure sum: keys, what two participants share, streams of masks, sealed shares.

Everything is of the package `cryptography`: X25519 (RFC 7748), HKDF with SHA-256 (RFC 5869), AES-256 in counter mode
for masks and in GCM for shares, Ed25519 (RFC 8032) for identities. A secret is a seed of 16 bytes from the operating
system, which is what is shared out; its keys follow from it. Every key is for one purpose, named with it, and for one
sum, whose context it is bound to; so a counter may start at zero.
"""

from __future__ import annotations

import hashlib
import secrets
from functools import cache
from typing import NamedTuple

import numpy as np
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedrec.core.errors import PacketError
from fedrec.secure.graph import DIGEST_BYTES

SEED_BYTES = 16
KEY_BYTES = 32
_TAG_BYTES = 16
SEALED_BYTES = 2 * SEED_BYTES + _TAG_BYTES
"""Of two shares, one of each secret, sealed for one neighbour."""
_SIGNATURE_BYTES = 64
_USERS_BYTES = 4
ANNOUNCED_BYTES = 3 * KEY_BYTES + _USERS_BYTES + _SIGNATURE_BYTES
MASK = "mask"
"""The purpose of a key of which the mask follows that two participants have in common."""
_ZERO = bytes(16)
_NONCE = bytes(12)


class Announced(NamedTuple):
    """What a participant announces before a sum.

    Attributes:
        identity: Its own Ed25519 key, the same in every sum.
        channel: X25519 key for what its neighbours seal for it.
        mask: X25519 key of the masks that it has in common with them.
        users: Users whose updates it was asked for.
        signature: Of its identity, over the rest and the context of the sum.
    """

    identity: bytes
    channel: bytes
    mask: bytes
    users: int
    signature: bytes

    def packed(self) -> NDArray[np.uint8]:
        """uint8 [ANNOUNCED_BYTES]."""
        parts = (self.identity, self.channel, self.mask, self.users.to_bytes(_USERS_BYTES, "little"), self.signature)
        return np.frombuffer(b"".join(parts), dtype=np.uint8)

    @staticmethod
    def unpacked(line: NDArray[np.uint8]) -> Announced:
        """The inverse; of any bytes."""
        raw = line.tobytes()
        keys = [raw[at : at + KEY_BYTES] for at in range(0, 3 * KEY_BYTES, KEY_BYTES)]
        rest = raw[3 * KEY_BYTES :]
        return Announced(keys[0], keys[1], keys[2], int.from_bytes(rest[:_USERS_BYTES], "little"), rest[_USERS_BYTES:])

    def digest(self) -> NDArray[np.uint8]:
        """uint8 [DIGEST_BYTES]: its line in the roll."""
        return np.frombuffer(hashlib.sha256(self.packed().tobytes()).digest()[:DIGEST_BYTES], dtype=np.uint8)

    def require_signed(self, context: bytes) -> None:
        """Raise PacketError (`wrong_signature`) if the signature is not the identity's, or of another sum."""
        try:
            Ed25519PublicKey.from_public_bytes(self.identity).verify(self.signature, context + self._signed())
        except (InvalidSignature, ValueError) as error:
            raise PacketError(
                "wrong_signature", f"what {self.identity.hex()} announces is not signed by it for this sum"
            ) from error

    def require_keys(self) -> None:
        """Raise PacketError (`wrong_key`) if with one of the X25519 keys everybody agrees on the same, known secret.

        Such a key has a low order, and shows at any exchange: at that with a key used for nothing else.
        """
        for key in (self.channel, self.mask):
            _exchanged(_probe(), key)

    def _signed(self) -> bytes:
        return self.channel + self.mask + self.users.to_bytes(_USERS_BYTES, "little")


def announced(identity: Ed25519PrivateKey, channel: bytes, mask: bytes, users: int, context: bytes) -> Announced:
    """What the owner of two seeds announces, signed."""
    public = identity.public_key().public_bytes_raw()
    unsigned = Announced(public, public_of(channel), public_of(mask), users, b"")
    return unsigned._replace(signature=identity.sign(context + unsigned._signed()))


def context_of(run_key: str, phase: int, round: int) -> bytes:
    """32 bytes that name a sum: every key and signature is bound to them."""
    return hashlib.sha256(f"fedrec secure sum/{run_key}/{phase}/{round}".encode()).digest()


def context_among(context: bytes, roll: bytes) -> bytes:
    """32 bytes that name a sum among those on a roll: who was told another roll comes to other keys."""
    return hashlib.sha256(context + roll).digest()


def new_seed() -> bytes:
    """From the operating system."""
    return secrets.token_bytes(SEED_BYTES)


def _derived(secret: bytes, purpose: str, context: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=context, info=purpose.encode()).derive(secret)


def _private_of(seed: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(_derived(seed, "x25519", b""))


@cache
def _probe() -> X25519PrivateKey:
    return X25519PrivateKey.generate()


def _exchanged(private: X25519PrivateKey, other: bytes) -> bytes:
    """What the owners of two keys have in common. Raises PacketError (`wrong_key`) if that is known to everybody."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError as error:
        raise PacketError("wrong_key", f"{other.hex()} is no X25519 key to agree on anything with") from error


def public_of(seed: bytes) -> bytes:
    """The X25519 key whose private half follows from a seed, 32 bytes."""
    return _private_of(seed).public_key().public_bytes_raw()


class Agreed:
    """What the owner of a seed has in common with others: a key for each of them and each purpose.

    Attributes:
        public: The owner's public key.
    """

    def __init__(self, seed: bytes, context: bytes) -> None:
        """Of the owner of `seed`, in one sum."""
        self._private = _private_of(seed)
        self.public = self._private.public_key().public_bytes_raw()
        self._context = context
        self._secrets: dict[bytes, bytes] = {}  # the exchange costs more than all that follows from it

    def key(self, other: bytes, purpose: str) -> bytes:
        """32 bytes that the owner of the other public key comes to as well.

        Raises PacketError (`wrong_key`) if that is no key: it would give the same whatever the seed.
        """
        if other not in self._secrets:
            self._secrets[other] = _exchanged(self._private, other)
        both = b"".join(sorted((self.public, other)))
        return _derived(self._secrets[other], purpose, self._context + both)

    def adds(self, other: bytes) -> bool:
        """Whether this one adds the mask that the other subtracts."""
        return self.public < other


def own_key(seed: bytes, context: bytes) -> bytes:
    """32 bytes: the key of the mask that a participant has by itself."""
    return _derived(seed, "own mask", context)


def commitment(seed: bytes, context: bytes) -> bytes:
    """32 bytes by which a seed that was put together of shares is known to be the right one."""
    return _derived(seed, "commitment", context)


def stream(key: bytes, length: int) -> bytes:
    """So many bytes that nobody tells from random ones without the key."""
    return Cipher(AES256(key), CTR(_ZERO)).encryptor().update(bytes(length))


def sealed(shares: bytes, key: bytes) -> bytes:
    """Shares as only the owner of the key reads them; the key must not have sealed anything else."""
    return AESGCM(key).encrypt(_NONCE, shares, None)


def opened(box: bytes, key: bytes) -> bytes | None:
    """What was sealed; None if it was not with this key, or was changed since."""
    try:
        return AESGCM(key).decrypt(_NONCE, box, None)
    except InvalidTag:
        return None
