"""The cryptography of secure aggregation, by the library of that name: key agreement, encryption, and streams of masks.

X25519 agrees on a key, HKDF with SHA-256 derives one for each purpose from it, ChaCha20-Poly1305 encrypts shares, and
AES-256 in counter mode expands a key to masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

#: Bytes of a secret, of a public key, and of a digest.
KEY_BYTES = 32
#: Bytes that encryption adds.
TAG_BYTES = 16
_NONCE = bytes(12)


def private_key(secret: bytes) -> X25519PrivateKey:
    """Return the private key with these bytes."""
    return X25519PrivateKey.from_private_bytes(secret)


def public_key(secret: bytes) -> bytes:
    """Return the public key of the private key with these bytes."""
    return private_key(secret).public_key().public_bytes_raw()


def agree(private: X25519PrivateKey, public: bytes, purpose: bytes) -> bytes:
    """Return the key that two parties derive, each from its own private key and the public key of the other."""
    shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=purpose).derive(shared)


def is_public_key(public: bytes) -> bool:
    """Return whether a key can be agreed on with the holder of a public key: it is no point of small order."""
    try:
        agree(private_key(bytes(KEY_BYTES)), public, b"")
    except ValueError:
        return False
    return True


def digest(secret: bytes) -> bytes:
    """Return a digest, with which a recovered secret is checked."""
    return hashlib.sha256(secret).digest()


def encrypt(key: bytes, text: bytes, about: bytes) -> bytes:
    """Encrypt and authenticate a text, and authenticate what it is about; a key must encrypt one text only."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, text, about)


def decrypt(key: bytes, text: bytes, about: bytes) -> bytes:
    """Return the text that `encrypt` was given; raise ``InvalidTag`` if anything differs."""
    return ChaCha20Poly1305(key).decrypt(_NONCE, text, about)


def masks(key: bytes, like: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield uniform random integers in the shape and dtype of each array, in the order of their names."""
    names = sorted(like)
    stream = Cipher(AES256(key), CTR(bytes(16))).encryptor().update(bytes(sum(like[name].nbytes for name in names)))
    start = 0
    for name in names:
        array = like[name]
        yield name, np.frombuffer(stream, array.dtype, array.size, start).reshape(array.shape)
        start += array.nbytes
