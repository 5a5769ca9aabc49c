"""Bytes that are no messages, at both ends of a channel: no hang, no crash, no message that nobody sent."""

import pickle
import random
import socket
import zlib
from contextlib import suppress

import pytest

from graphmill.errors import ChannelClosed, MessageError
from graphmill.workers import frames as frames_module
from graphmill.workers.channel import PollChannel, WaitChannel
from graphmill.workers.frames import LONGEST, SCRATCH, FrameReader, pack
from graphmill.workers.messages import Died

CASES = 10_000


def frames(chance):
    """Make some frames, each with what it says."""
    made = []
    for number in range(chance.randrange(1, 6)):
        size = chance.choice([0, 1, 50, 300, 3_000])
        message = (number, chance.randbytes(size))
        made.append((message, b"".join(pack((message,)))))
    return made


def spoil(chance, pieces):
    """Cut, reorder, repeat, change or invent bytes."""
    way = chance.randrange(7)
    if way == 0:
        chance.shuffle(pieces)
    elif way == 1:
        pieces.insert(chance.randrange(len(pieces) + 1), chance.choice(pieces))
    elif way == 2:
        pieces.insert(chance.randrange(len(pieces) + 1), chance.randbytes(chance.choice([1, 8, 16, 17, 500])))
    stream = bytearray(b"".join(pieces))
    at = chance.randrange(len(stream))
    if way == 3:
        del stream[at:]
    elif way == 4:
        del stream[at : at + chance.randrange(1, 40)]
    elif way == 5:
        stream[at] ^= 1 << chance.randrange(8)
    elif way == 6:
        stream[:] = chance.randbytes(chance.randrange(1, 2_000))
    return bytes(stream)


@pytest.mark.parametrize("end", [PollChannel, WaitChannel])
def test_only_what_was_sent_is_received(end):
    chance = random.Random(end.__name__)
    for _ in range(CASES // 2):
        made = frames(chance)
        sent = [message for message, _ in made]
        stream = spoil(chance, [piece for _, piece in made])
        near, far = socket.socketpair()
        with near, far:
            far.sendall(stream)
            far.shutdown(socket.SHUT_WR)
            found = receive_all(end(near))
        assert all(message in sent for message in found)


def receive_all(channel):
    """Receive until the end, or until nothing more can be read."""
    found = []
    if isinstance(channel, PollChannel):
        while not (channel.ended or channel.lost):
            found += channel.receive()
        return found
    with suppress(ChannelClosed, MessageError):
        while True:
            found += channel.receive(timeout=10)
    return found


def test_what_came_before_is_not_lost():
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"".join([*pack(("first",)), *pack(("second",)), b"x" * 100]))
        channel = PollChannel(near)
        assert channel.receive() == ["first", "second"]
        assert isinstance(channel.broken, MessageError)
        assert channel.lost


@pytest.mark.parametrize("length", [LONGEST + 1, (1 << 64) - 1, 1 << 50, 1 << 20])
def test_no_memory_is_set_aside_for_a_length_that_nobody_meant(length):
    reader = FrameReader()
    space = reader.space()
    space[:16] = length.to_bytes(8, "little") + bytes(8)
    reader.advance(16)
    with pytest.raises(MessageError, match="no message"):
        reader.messages()
    assert len(reader._buffer) == SCRATCH


@pytest.mark.parametrize("length", [LONGEST + 1, (1 << 64) - 1])
def test_what_is_too_long_is_refused_though_its_header_is_right(length):
    reader = FrameReader()
    header = frames_module._HEADER.pack(length, 0, zlib.crc32(frames_module._LENGTH.pack(length, 0)))
    reader.space()[: len(header)] = header
    reader.advance(len(header))
    with pytest.raises(MessageError, match="no message"):
        reader.messages()
    assert len(reader._buffer) == SCRATCH


def test_nothing_is_unpickled_that_was_changed():
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("it was unpickled",)

    header, _ = pack(("harmless",))
    trap = pickle.dumps((Trap(),))
    reader = FrameReader()
    stream = header + trap
    reader.space()[: len(stream)] = stream
    reader.advance(len(stream))
    with pytest.raises(MessageError, match="changed on its way"):
        reader.messages()


def foreign():
    raise ValueError("this object is not for you")


class Foreign:
    def __reduce__(self):
        return foreign, ()


class TestThePool:
    """Real processes: one that says what makes no sense is ended, and another takes its place."""

    @pytest.mark.parametrize("seed", range(10))
    def test_a_worker_that_writes_nonsense(self, make_pool, ask, collect, seed, caplog):
        pool = make_pool(2)
        ask(pool, "hello", worker=1)
        nonsense = random.Random(seed).randbytes(random.Random(seed).choice([1, 15, 16, 200, 100_000]))
        if len(nonsense) < 16:
            nonsense += bytes(16)
        pool.send(0, ("write", nonsense))
        [(number, died)] = collect(pool, 1)
        assert (number, died.signal) == (0, 9)
        assert any("channel to worker 0 is lost" in record.message for record in caplog.records)
        pool.restart(0)
        assert ask(pool, "again") == ("again",)
        assert ask(pool, "still", worker=1) == ("still",)

    def test_a_worker_that_sends_what_cannot_be_rebuilt(self, make_pool, ask, collect):
        pool = make_pool()
        payload = pickle.dumps((Foreign(),))
        pool.send(0, ("write_frame", payload))
        [(_, died)] = collect(pool, 1)
        assert isinstance(died, Died)
        pool.restart(0)
        assert ask(pool, "again") == ("again",)

    def test_a_worker_that_is_sent_nonsense(self, make_pool, ask, collect, capfd):
        pool = make_pool()
        ask(pool, "hello")
        pool._workers[0].channel._socket.send(b"x" * 100)
        [(_, died)] = collect(pool, 1)
        assert died.exitcode == 1
        assert "MessageError" in capfd.readouterr().err
        pool.restart(0)
        assert ask(pool, "again") == ("again",)

    def test_a_worker_that_does_not_read(self, make_pool, ask, collect):
        """The pool never waits for it, and talks to others."""
        pool = make_pool(2)
        ask(pool, "hello")
        pool.send(0, ("stop_oneself",))
        for _ in range(20):
            pool.send(0, b"x" * 100_000)
        assert ask(pool, "hello", worker=1) == ("hello",)
        pool.kill(0)
        [(number, died)] = collect(pool, 1)
        assert (number, died.signal) == (0, 9)
