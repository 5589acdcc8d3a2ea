"""What makes two files of final weights the same one: the checkpoint's identity and what is made
of it. Knows nothing of torch or of the store's files.
"""

import hashlib

import msgspec


class StoreKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Equal keys are equal bits of every final tensor."""

    checkpoint: str
    """`ContentDigest.identity` of its tensors."""

    architecture: str
    specs: str
    """Digest of the weight specs: which tensors are stacked to what, in which shapes."""

    dtype: str
    layout: int
    """Version of the packed layout."""

    quantization: str = "none"
    tp_rank: int = 0
    tp_size: int = 1

    @property
    def name(self) -> str:
        """Of the file, without suffix."""
        return hashlib.blake2b(msgspec.json.encode(self), digest_size=16).hexdigest()
