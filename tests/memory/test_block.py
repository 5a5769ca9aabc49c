"""The records of where values lie."""

import pickle

from graphmill.memory.block import BlockId, Encoded, Extent


def test_an_extent_names_its_block():
    extent = Extent(arena=3, block=8192, offset=16, nbytes=100, length=4096)
    assert extent.id == BlockId(3, 8192)
    assert hash(extent.id) == hash(BlockId(arena=3, offset=8192))


def test_a_value_counts_each_block_once():
    first = Extent(0, 0, 0, 4096, 8192)
    second = Extent(0, 0, 4096, 4096, 8192)
    other = Extent(1, 0, 0, 10, 4096)
    encoded = Encoded.of(b"12345", [first, second, other])
    assert encoded == Encoded(b"12345", (first, second, other), 5 + 8192 + 4096)
    assert pickle.loads(pickle.dumps(encoded)) == encoded


def test_a_value_without_buffers_is_its_payload():
    assert Encoded.of(b"123", ()).nbytes == 3
