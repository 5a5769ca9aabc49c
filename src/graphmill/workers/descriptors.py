"""Sockets and standard streams, also where some of the standard streams are closed.

Then whatever is opened next takes their numbers, and a word printed in C would go into it.
"""

from __future__ import annotations

import os
import socket
from typing import Final

STDOUT: Final = 1
STDERR: Final = 2


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Make two connected sockets, none of which can be taken for standard input, output or error."""
    near, far = socket.socketpair()
    return _lifted(near), _lifted(far)


def _lifted(sock: socket.socket) -> socket.socket:
    """Move a socket above the standard descriptors, if these were closed and it got one of them."""
    if sock.fileno() > STDERR:
        return sock
    import fcntl  # noqa: PLC0415 - Windows has none, and must be able to import this module

    with sock:
        return socket.socket(fileno=fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, STDERR + 1))


def is_standard(descriptor: int) -> bool:
    """Whether a number of a standard stream is still that stream's, so that children should have it too."""
    try:
        # Python keeps from children what it opens itself: then something else has taken the number.
        return os.get_inheritable(descriptor)
    except OSError:
        return False
