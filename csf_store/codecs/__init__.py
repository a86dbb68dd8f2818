"""How chunks are held: one file per codec, a table, and a choice by sampling."""

from csf_store.codecs.base import Codec, CodecError, Hint
from csf_store.codecs.registry import codec, codecs, encode, needs_base

__all__ = ["Codec", "CodecError", "Hint", "codec", "codecs", "encode", "needs_base"]
