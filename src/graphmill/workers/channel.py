"""Messages over a pair of connected Unix sockets.

How messages lie in the stream of bytes is the matter of `frames`; above it stand two kinds of channel:

- `PollChannel` never waits. What the socket does not take at once is kept, and sent by `flush` when
  the socket has room. The parent holds these: since it always gets round to reading, a worker that
  waits for room always gets it, so the two cannot wait for each other.
- `WaitChannel` waits, for a message and for room. Workers hold these.

Channels of either kind are for one thread at a time.
"""

from __future__ import annotations

import array
import os
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from graphmill.errors import ChannelClosed
from graphmill.workers.frames import FrameReader, pack

#: A longer payload is not copied to stand beside its header.
_JOIN_LIMIT: Final = 1 << 16

#: How often a PollChannel fills its buffer before others get their turn.
_READS_PER_TURN: Final = 16

#: A peer's death must be an error, also where the user lets SIGPIPE kill the process.
_SEND_FLAGS: Final = getattr(socket, "MSG_NOSIGNAL", 0)

_DESCRIPTOR_BYTES: Final = array.array("i").itemsize


@dataclass(slots=True)
class _Piece:
    """Bytes on their way out."""

    #: What is left of them.
    data: memoryview
    #: A descriptor that goes along with the first of them.
    descriptor: int | None = None


class PollChannel:
    """An end of a channel that never waits.

    Attributes
    ----------
    ended : bool
        The other side is gone, and all that it sent has been received.
    broken : Exception or None
        Why nothing more of what the other side sends can be read, if so.
    """

    __slots__ = ("_midway", "_reader", "_socket", "_unsent", "broken", "ended")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._reader = FrameReader()
        self._unsent: deque[_Piece] = deque()
        #: Set while bytes are moved and not yet accounted for. An exception that comes from outside
        #: just then, such as a time-out by signal, leaves it set: the stream has lost its place.
        self._midway = False
        self.ended = False
        self.broken: Exception | None = None

    def fileno(self) -> int:
        """Give the descriptor of the socket, for selectors."""
        return self._socket.fileno()

    @property
    def unsent(self) -> bool:
        """Whether something waits for the socket to have room."""
        return bool(self._unsent)

    @property
    def lost(self) -> bool:
        """Whether nothing more can be heard: bytes make no sense, or an exception cut a transfer short."""
        return self._midway or self.broken is not None

    def send(self, *messages: object, descriptor: int | None = None) -> None:
        """Send messages in one frame, now or with a later `flush`.

        If the other side is gone, they go nowhere: its end is told to those who receive.

        Parameters
        ----------
        *messages
            Anything that pickles.
        descriptor
            To send along; it must stay open until nothing is `unsent`.
        """
        header, payload = pack(messages)
        if len(payload) <= _JOIN_LIMIT:
            self._unsent.append(_Piece(memoryview(header + payload), descriptor))
        else:
            self._unsent.append(_Piece(memoryview(header), descriptor))
            self._unsent.append(_Piece(memoryview(payload)))
        self.flush()

    def flush(self) -> None:
        """Send as much as the socket takes."""
        self._check()
        self._midway = True
        try:
            while self._unsent:
                piece = self._unsent[0]
                sent = self._send_piece(piece)
                if sent == len(piece.data):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = _Piece(piece.data[sent:])
        except BlockingIOError:
            pass  # no room: the rest stays
        except (BrokenPipeError, ConnectionResetError):
            self._unsent.clear()
        self._midway = False

    def receive(self) -> list[Any]:
        """Receive what is there; sets `ended` at the end of the stream.

        A side that sends without pause gets no more than its turn: call again while it is readable.
        """
        self._check()
        found: list[Any] = []
        for _ in range(_READS_PER_TURN if self.broken is None else 0):
            space = self._reader.space()
            self._midway = True
            count = self._receive_bytes(space)
            if count:
                self._reader.advance(count)
            self._midway = False
            if count is None:
                break
            if count == 0:
                self.ended = True
                break
            self._take_whole(found)
            if count < len(space) or self.broken is not None:
                break  # most likely there is no more, and to ask costs as much as to read
        return found

    def drain(self) -> list[Any]:
        """Receive all that has been sent so far by a process that is dead."""
        found: list[Any] = []
        while not self.ended and not self.lost:
            count = self._receive_bytes(self._reader.space())
            if not count:
                self.ended = count == 0
                break
            self._reader.advance(count)
            self._take_whole(found)
        return found

    def _take_whole(self, found: list[Any]) -> None:
        """Add the messages that have arrived; what cannot be read is no reason to lose those before it."""
        try:
            while (batch := self._reader.next_batch()) is not None:
                found.extend(batch)
        except Exception as error:  # noqa: BLE001 - whatever rebuilding an object raises
            self.broken = error

    def close(self) -> None:
        """Close the socket; what is unsent is lost."""
        self._unsent.clear()
        self._socket.close()

    def _check(self) -> None:
        if self._midway:
            raise ChannelClosed("An exception from outside cut a transfer short: the channel lost its place")

    def _send_piece(self, piece: _Piece) -> int:
        if piece.descriptor is None:
            return self._socket.send(piece.data, _SEND_FLAGS)
        rights = array.array("i", [piece.descriptor])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
        return self._socket.sendmsg([piece.data], ancillary, _SEND_FLAGS)

    def _receive_bytes(self, space: memoryview) -> int | None:
        """Count the bytes received, 0 at the end; None if nothing is there yet."""
        try:
            return self._socket.recv_into(space)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return 0  # it left while it had not read all: Linux tells this after all that it had sent


class DescriptorChannel(PollChannel):
    """A PollChannel that also receives descriptors."""

    __slots__ = ("_descriptors",)

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._descriptors: deque[int | None] = deque()

    def take_descriptor(self) -> int | None:
        """Take over the oldest descriptor received; they come no later than the message they belong to.

        Returns
        -------
        int or None
            None if this process has as many open as it may, and the system has let go of it.
        """
        return self._descriptors.popleft() if self._descriptors else None

    def close(self) -> None:
        """Close the socket, and the descriptors that nobody took."""
        super().close()
        for descriptor in self._descriptors:
            if descriptor is not None:
                os.close(descriptor)
        self._descriptors.clear()

    def _receive_bytes(self, space: memoryview) -> int | None:
        room = socket.CMSG_SPACE(8 * _DESCRIPTOR_BYTES)
        try:
            count, ancillary, flags, _ = self._socket.recvmsg_into([space], room)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return 0
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received = array.array("i")
                received.frombytes(data[: len(data) - len(data) % _DESCRIPTOR_BYTES])
                for descriptor in received:
                    os.set_inheritable(descriptor, False)
                self._descriptors.extend(received)
        if flags & socket.MSG_CTRUNC:
            self._descriptors.append(None)
        return count


class WaitChannel:
    """An end of a channel that waits: for messages, and for room to send."""

    __slots__ = ("_reader", "_socket")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._reader = FrameReader()

    def send(self, *messages: object) -> None:
        """Send messages in one frame.

        Raises
        ------
        ChannelClosed
            If the other side is gone.
        """
        header, payload = pack(messages)
        try:
            if len(payload) <= _JOIN_LIMIT:
                self._socket.sendall(header + payload, _SEND_FLAGS)
            else:
                self._socket.sendall(header, _SEND_FLAGS)
                self._socket.sendall(payload, _SEND_FLAGS)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed("The other side of the channel is gone") from error

    def receive(self, timeout: float | None = None) -> list[Any]:
        """Wait for messages, and give all that are there.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most; 0 looks only whether something is there. Without it, the wait ends
            with a message or with the other side.

        Returns
        -------
        list
            The messages, oldest first; empty if the time was up.

        Raises
        ------
        ChannelClosed
            If the other side is gone.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            count = self._receive_bytes(deadline)
            if count is None:
                return []
            if count == 0:
                raise ChannelClosed("The other side of the channel is gone")
            self._reader.advance(count)
            messages = self._reader.messages()
            if messages:
                return messages

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _receive_bytes(self, deadline: float | None) -> int | None:
        """Count the bytes received, 0 at the end; None if the time was up."""
        space = self._reader.space()
        try:
            if deadline is None:
                return self._socket.recv_into(space)
            left = deadline - time.monotonic()
            if left <= 0:
                return self._socket.recv_into(space, 0, socket.MSG_DONTWAIT)
            self._socket.settimeout(left)
            try:
                return self._socket.recv_into(space)
            finally:
                self._socket.settimeout(None)
        except (BlockingIOError, TimeoutError):
            return None
        except ConnectionResetError:
            return 0
