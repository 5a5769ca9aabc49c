"""What workers run in the tests; imported by name in the template process, so nothing heavy here.

A message that is a tuple beginning with the name of a function below is an order: it is carried out,
and what it returns is sent back. Anything else is sent back as it is.
"""

import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path


def echo(channel):
    while True:
        for message in channel.receive():
            channel.send(answer(channel, message))


def answer(channel, message):
    if isinstance(message, tuple) and message and message[0] in ORDERS:
        name, *args = message
        return ORDERS[name](channel, *args)
    return message


def describe(channel):
    """Say what a worker finds around it."""
    numpy = sys.modules.get("numpy")
    return {
        "number": channel.number,
        "setup": channel.setup,
        "pid": os.getpid(),
        "folder": str(Path.cwd()),
        "path": list(sys.path),
        "argv": sys.argv,
        "main": sorted(name for name in vars(sys.modules["__main__"]) if not name.startswith("__")),
        "environment": dict(os.environ),
        "hash": hash("graphmill"),
        "random": random.random(),
        "numpy random": None if numpy is None else numpy.random.random(),
        "input": sys.stdin.read(),
        "sockets": sockets(),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "modules": sorted(sys.modules),
        "session": os.getsid(0),
        "optimize": sys.flags.optimize,
        "inheritable": [number for number in open_descriptors() if os.get_inheritable(number)],
    }


def open_descriptors():
    numbers = [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    return sorted(number for number in numbers if Path(f"/proc/self/fd/{number}").exists())


def sockets():
    links = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]  # noqa: PTH115 - not resolved
    return [link for link in links if link.startswith("socket:")]


def leave(channel, code):
    os._exit(code)


def stop_serving(channel, code):
    sys.exit(code)


def crash(channel):
    raise ZeroDivisionError("a fault in serve")


def say_and_die(channel, count):
    """Send some messages, and die in the middle of another."""
    for number in range(count):
        channel.send(number)
    channel._socket.sendall(b"\xff\0\0")
    os.kill(os.getpid(), signal.SIGKILL)


def flood(channel, nbytes):
    """Send more than fits between two processes, before anything else is read."""
    channel.send(b"x" * nbytes)
    return "flooded"


def say(channel, text):
    sys.stdout.write(text)
    sys.stderr.write(text)
    return "said"


def signal_process(channel, pid, signum):
    os.kill(pid, signum)
    return "sent"


def signal_oneself(channel, signum):
    os.kill(os.getpid(), signum)


def leave_child_behind(channel):
    """Fork a process that keeps this one's sockets open, in a session of its own; say which, and die."""
    settled, settle = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.write(settle, b"!")
        signal.pause()
        os._exit(0)
    os.read(settled, 1)
    channel.send(pid)
    os._exit(3)


def start_program(channel):
    """Start a program that would run for long, and say which."""
    return subprocess.Popen(["sleep", "1000"]).pid


def write(channel, data):
    """Put bytes into the channel that are no message."""
    channel._socket.sendall(data)
    signal.pause()


def write_frame(channel, payload):
    """Send a payload that was pickled elsewhere."""

    class Packed:
        def __reduce__(self):
            return pickle.loads, (payload,)

    channel.send(Packed())
    signal.pause()


def stop_oneself(channel):
    os.kill(os.getpid(), signal.SIGSTOP)


def deafen(channel):
    """Close the channel, and stay."""
    os.close(channel._socket.fileno())
    signal.pause()


def run_task(channel, number, name, *args):
    """Run a function that can be interrupted; say when it begins."""
    channel.send(("began", number))
    try:
        return ("done", number, channel.interrupts.run(number, globals()[name], *args))
    except KeyboardInterrupt:
        return ("interrupted", number)


def spin():
    while True:
        pass


def add(x, y):
    return x + y


def interrupt_oneself():
    os.kill(os.getpid(), signal.SIGINT)
    return "went on"


def await_idle_interrupt(channel):
    """Outside any task: wait until the first interrupt was dealt with."""
    while channel.interrupts._seen == 0:
        pass
    return "dealt with"


ORDERS = {
    function.__name__: function
    for function in (
        describe,
        leave,
        stop_serving,
        crash,
        say_and_die,
        flood,
        say,
        signal_process,
        signal_oneself,
        leave_child_behind,
        start_program,
        write,
        write_frame,
        stop_oneself,
        deafen,
        run_task,
        await_idle_interrupt,
    )
}
