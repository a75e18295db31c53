"""Which partition a key goes to: murmur2, as Kafka's Java clients count.

The relay says the number itself instead of leaving it to the client, so that a topic that is given more partitions while the
relay runs does not send a stream's next event to another one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

from confluent_kafka import cimpl

__all__ = ["partition_of"]


def _murmur2_partitioner() -> Callable[[None, bytes, int, int, None, None], int]:
    """Return librdkafka's own murmur2 partitioner, a public function of the library that the client brings.

    Its first argument, a topic, is not used by this partitioner. PyDLL keeps the GIL, which costs more to give up than the hash.
    Source: `rd_kafka_msg_partitioner_murmur2` in https://github.com/confluentinc/librdkafka/blob/v2.16.0/src/rdkafka.h
    """
    function = ctypes.PyDLL(cimpl.__file__).rd_kafka_msg_partitioner_murmur2
    function.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p]
    function.restype = ctypes.c_int32
    return function


_murmur2: Final = _murmur2_partitioner()


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of a key in a topic with that many: `(murmur2(key) & 0x7fffffff) % partitions`."""
    return _murmur2(None, key, len(key), partitions, None, None)
