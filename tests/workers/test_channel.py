"""Messages over sockets, however the bytes are cut."""

import itertools
import pickle
import select
import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphmill.errors import ChannelClosed
from graphmill.workers.channel import DescriptorChannel, PollChannel, WaitChannel
from graphmill.workers.frames import SCRATCH, FrameReader, pack


def frame(*messages):
    return b"".join(pack(messages))


def feed(reader, data):
    """Give a reader bytes as a socket would: never more than it has space for."""
    found = []
    while data:
        space = reader.space()
        assert len(space) > 0
        count = min(len(space), len(data))
        space[:count] = data[:count]
        reader.advance(count)
        data = data[count:]
        found += reader.messages()
    return found


@pytest.fixture
def ends():
    pair = socket.socketpair()
    yield pair
    for end in pair:
        end.close()


@settings(deadline=None)
@given(
    sizes=st.lists(st.lists(st.sampled_from([0, 1, 100, 30_000, SCRATCH - 8, SCRATCH, 200_000]), max_size=3)),
    cuts=st.lists(st.integers(997, 100_000), min_size=1),
)
def test_frames_survive_any_cut(sizes, cuts):
    batches = [[bytes([number % 256]) * size for size in batch] for number, batch in enumerate(sizes)]
    stream = b"".join(frame(*batch) for batch in batches)
    reader, found, begin = FrameReader(), [], 0
    for count in itertools.cycle(cuts):
        found += feed(reader, stream[begin : begin + count])
        begin += count
        if begin >= len(stream):
            break
    assert found == [message for batch in batches for message in batch]


def test_frames_byte_by_byte():
    reader = FrameReader()
    found = [feed(reader, bytes([byte])) for byte in frame("a", "b") + frame("c")]
    assert [message for messages in found for message in messages] == ["a", "b", "c"]


def test_a_large_buffer_is_let_go_of():
    reader = FrameReader()
    assert feed(reader, frame(b"x" * 1_000_000)) == [b"x" * 1_000_000]
    assert len(reader.space()) == SCRATCH


def explode():
    raise ValueError("cannot be built again")


class Explosive:
    def __reduce__(self):
        return explode, ()


def test_reader_goes_on_after_a_message_that_cannot_be_read():
    reader = FrameReader()
    with pytest.raises(ValueError, match="cannot be built again"):
        feed(reader, frame(Explosive()))
    assert feed(reader, frame("next")) == ["next"]


@pytest.mark.parametrize("kinds", [(PollChannel, WaitChannel), (WaitChannel, PollChannel)])
def test_channels_carry_batches_in_order(ends, kinds):
    sender, receiver = (kind(end) for kind, end in zip(kinds, ends, strict=True))
    sender.send(1, [2])
    sender.send(None)
    assert receiver.receive() == [1, [2], None]


def test_poll_channel_never_waits(ends):
    channel = PollChannel(ends[0])
    assert channel.receive() == []
    big = b"x" * 5_000_000
    channel.send(big)
    channel.send("after")
    assert channel.unsent
    reader, found = WaitChannel(ends[1]), []
    while len(found) < 2:
        channel.flush()
        found += reader.receive(timeout=0)
    assert found == [big, "after"]
    assert not channel.unsent


def test_both_sides_write_at_once(ends):
    """Neither side reads before it has written: with full buffers that would never end."""
    parent, worker = PollChannel(ends[0]), WaitChannel(ends[1])
    big = b"x" * 5_000_000
    heard = []

    def work():
        worker.send(big)
        heard.extend(worker.receive())

    thread = threading.Thread(target=work)
    thread.start()
    parent.send(big)
    found = []
    while not found or parent.unsent:
        poll = select.poll()
        poll.register(parent, select.POLLIN | (select.POLLOUT if parent.unsent else 0))
        assert poll.poll(60_000)
        parent.flush()
        found += parent.receive()
    thread.join(60)
    assert (found, heard) == ([big], [big])


def test_a_flood_gets_only_its_turn(ends):
    """However much the other side sends while this one reads."""
    sender = PollChannel(ends[1])
    for number in range(20_000):
        sender.send(number, b"x" * 1_000)

    class Flooded(PollChannel):
        __slots__ = ()

        def _receive_bytes(self, space):
            sender.flush()
            return super()._receive_bytes(space)

    found = Flooded(ends[0]).receive()
    assert found[:3:2] == [0, 1]
    assert sender.unsent


def test_end_of_a_channel(ends):
    parent, worker = PollChannel(ends[0]), WaitChannel(ends[1])
    worker.send("last words")
    worker.close()
    assert parent.receive() == ["last words"]
    assert parent.receive() == []
    assert parent.ended
    parent.send("nobody hears this")
    assert not parent.unsent


def test_end_of_a_channel_that_was_not_read(ends):
    """Then the system says that the connection was reset, but only after what was sent."""
    parent, worker = PollChannel(ends[0]), WaitChannel(ends[1])
    parent.send("unread")
    worker.send("last words")
    worker.close()
    assert parent.drain() == ["last words"]
    assert parent.ended


def test_waiting_side_learns_of_the_end(ends):
    parent, worker = PollChannel(ends[0]), WaitChannel(ends[1])
    parent.send("unread")
    parent.close()
    assert worker.receive() == ["unread"]
    with pytest.raises(ChannelClosed):
        worker.receive()
    with pytest.raises(ChannelClosed):
        worker.receive(timeout=0)
    with pytest.raises(ChannelClosed):
        worker.send("nobody hears this")


@pytest.mark.parametrize("timeout", [0, 0.001])
def test_waiting_side_has_a_limit(ends, timeout):
    worker = WaitChannel(ends[0])
    assert worker.receive(timeout) == []
    WaitChannel(ends[1]).send("late")
    assert worker.receive(timeout) == ["late"]
    WaitChannel(ends[1]).send("later")
    assert worker.receive() == ["later"]


def test_a_message_that_does_not_pickle_sends_nothing(ends):
    channel = PollChannel(ends[0])
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        channel.send("one", lambda: None)
    channel.send("two")
    assert WaitChannel(ends[1]).receive() == ["two"]


class FaultySocket:
    """Raises, as a handler of a signal may, after the bytes have moved."""

    def __init__(self, sock):
        self.sock = sock

    def __getattr__(self, name):
        return getattr(self.sock, name)

    def recv_into(self, *args):
        self.sock.recv_into(*args)
        raise TimeoutError("by a signal")

    def send(self, *args):
        self.sock.send(*args)
        raise TimeoutError("by a signal")


def test_a_channel_that_lost_its_place_is_not_read_on(ends):
    channel = PollChannel(FaultySocket(ends[0]))
    PollChannel(ends[1]).send("lost")
    with pytest.raises(TimeoutError):
        channel.receive()
    with pytest.raises(ChannelClosed, match="lost its place"):
        channel.receive()
    assert channel.lost
    assert channel.drain() == []


def test_a_channel_that_lost_its_place_is_not_written_on(ends):
    channel = PollChannel(FaultySocket(ends[0]))
    with pytest.raises(TimeoutError):
        channel.send("lost")
    with pytest.raises(ChannelClosed, match="lost its place"):
        channel.send("next")


def test_descriptors_travel_with_their_messages(ends):
    sender, receiver = PollChannel(ends[0]), DescriptorChannel(ends[1])
    pipes = [socket.socketpair() for _ in range(3)]
    for number, (_, far) in enumerate(pipes):
        sender.send(number, descriptor=far.fileno())
        sender.send("none with this")
    for _, far in pipes:
        far.close()
    found = []
    while len(found) < 6:
        found += receiver.receive()
    assert [message for message in found if message != "none with this"] == [0, 1, 2]
    for near, _ in pipes[:2]:
        with near, socket.socket(fileno=receiver.take_descriptor()) as far:
            assert not far.get_inheritable()
            far.send(b"!")
            assert near.recv(2) == b"!"
    receiver.close()  # and the one that nobody took
    with pipes[2][0] as near:
        assert near.recv(1) == b""
