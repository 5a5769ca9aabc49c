"""Frames: how messages lie in a stream of bytes.

A frame is a header, and a pickled tuple of messages: what is sent together travels together. The header says
how long the rest is, and carries two checksums, of that length and of the rest. So bytes that are missing, or
that somebody else has put into the stream, are never taken for a message: nothing is unpickled that was not
packed as it is, and no memory is set aside for a length that nobody meant.

Knows bytes and no sockets.
"""

from __future__ import annotations

import pickle
import struct
import zlib
from typing import Any, Final

from graphmill.errors import MessageError

#: The length of the payload, its checksum, and the checksum of both.
_HEADER: Final = struct.Struct("<QII")
_LENGTH: Final = struct.Struct("<QI")

#: Bytes of the buffer that most frames fit in.
SCRATCH: Final = 1 << 16

#: No payload is longer, in bytes.
LONGEST: Final = 1 << 40


def pack(messages: tuple[object, ...]) -> tuple[bytes, bytes]:
    """Make the header and the payload of a frame.

    Raises
    ------
    MessageError
        If the messages are too long.
    """
    payload = pickle.dumps(messages, pickle.HIGHEST_PROTOCOL)
    if len(payload) > LONGEST:
        raise MessageError(f"Messages of {len(payload):,} bytes cannot be sent: {LONGEST:,} are the most")
    length, check = len(payload), zlib.adler32(payload)
    return _HEADER.pack(length, check, zlib.crc32(_LENGTH.pack(length, check))), payload


class FrameReader:
    """Cuts a stream of bytes into frames.

    Put bytes into `space()`, say how many with `advance`, and take the messages of each frame that is whole
    with `next_batch`; or all of them with `messages`.
    """

    __slots__ = ("_buffer", "_end", "_start")

    def __init__(self) -> None:
        #: What was received and not used yet lies in [_start, _end).
        self._buffer = memoryview(bytearray(SCRATCH))
        self._start = 0
        self._end = 0

    def space(self) -> memoryview:
        """Give the place where the next bytes belong; it is never empty."""
        return self._buffer[self._end :]

    def advance(self, count: int) -> None:
        """Tell how many bytes were put there."""
        self._end += count

    def messages(self) -> list[Any]:
        """Unpickle all frames that are whole, as `next_batch` does."""
        found: list[Any] = []
        while (batch := self.next_batch()) is not None:
            found.extend(batch)
        return found

    def next_batch(self) -> tuple[Any, ...] | None:
        """Unpickle the next frame; None if it is not whole yet. Until then, it is to be called again.

        Raises
        ------
        MessageError
            If what comes next is no frame. There is no way to find the next one.
        Exception
            What unpickling raises. The frame is passed over.
        """
        begin = self._start + _HEADER.size
        if begin > self._end:
            self._make_room(_HEADER.size)
            return None
        length, check, check_of_both = _HEADER.unpack_from(self._buffer, self._start)
        if length > LONGEST or zlib.crc32(_LENGTH.pack(length, check)) != check_of_both:
            raise MessageError("What came over a channel is no message: bytes are missing, or not ours")
        end = begin + length
        if end > self._end:
            self._make_room(_HEADER.size + length)
            return None
        frame = self._buffer[begin:end]
        self._start = end
        if zlib.adler32(frame) != check:
            raise MessageError("A message has changed on its way: bytes are missing, or not ours")
        batch: tuple[Any, ...] = pickle.loads(frame)  # noqa: S301 - from a process of our own
        return batch

    def _make_room(self, needed: int) -> None:
        """See that the rest of a frame fits that has begun, and takes so many bytes."""
        present = self._end - self._start
        if self._start + needed <= len(self._buffer) and present:
            return
        size = max(needed, SCRATCH)
        begun = bytes(self._buffer[self._start : self._end])
        if size != len(self._buffer):
            try:
                self._buffer = memoryview(bytearray(size))
            except MemoryError:
                raise MessageError(f"There is no memory for a message of {needed:,} bytes") from None
        self._buffer[:present] = begun
        self._start, self._end = 0, present
