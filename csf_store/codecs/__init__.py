"""How chunks are held: one file per codec, a table, and a choice by sampling."""

from csf_store.codecs.base import WORTH, Codec, CodecError, Hint
from csf_store.codecs.registry import codec, codecs, encode, needs_base

__all__ = ["WORTH", "Codec", "CodecError", "Hint", "codec", "codecs", "encode", "needs_base"]
