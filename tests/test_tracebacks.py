import copyreg
import io
import json
import pdb  # noqa: T100 - its user is what is tested
import subprocess
import sys
import sysconfig
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path

import pytest

from graphmill.errors import GraphmillError, MissingKeyError, RemoteError, WorkerError
from graphmill.tracebacks import MAX_EXCEPTIONS, MAX_FRAMES, decode_exception, encode_exception


def round_trip(exc, tb=None):
    return decode_exception(encode_exception(exc, tb))


def caught(function, *args):
    try:
        function(*args)
    except BaseException as exc:  # noqa: BLE001 - it is what is asked for
        return exc
    raise AssertionError("nothing was raised")


def names_in(exc):
    return [entry.name for entry in traceback.extract_tb(exc.__traceback__)]


def divide(x):
    return 1 / x


def outer(x):
    return divide(x)


class Plain(Exception):
    pass


class Stubborn(Exception):
    """Can be pickled, but by default not unpickled."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")
        self.first = first


class KeywordOnly(ValueError):
    def __init__(self, *, code):
        self.code = code

    def __str__(self):
        return f"code {self.code}"


class NoArguments(RuntimeError):
    def __init__(self):
        super().__init__("fixed text", 3)


class Missing(FileNotFoundError):
    def __init__(self, path):
        super().__init__(2, "not here", path)
        self.path = path


class Slotted(Exception):
    __slots__ = ("__private", "value")

    def __init__(self, value):
        self.value = value
        self.__private = value + 1

    def __str__(self):
        return f"{self.value} {self.__private}"


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Reducing(Exception):
    def __init__(self, a, b):
        super().__init__(a)
        self.b = b

    def __reduce__(self):
        return Reducing, (self.args[0], self.b)


class RefusesToCome(Exception):
    def __reduce__(self):
        return refuse, ()


def refuse():
    raise RuntimeError("refuses to be unpickled")


class RefusesToGo(Exception):
    def __reduce__(self):
        raise RuntimeError("refuses to be pickled")


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("says nothing")


class Group(ExceptionGroup):
    def __new__(cls, errors, code):
        group = super().__new__(cls, "many", errors)
        group.code = code
        return group

    def derive(self, excs):
        return Group(excs, self.code)


ordinary = [
    ValueError("text", 3),
    KeyError("key"),
    Exception(),
    StopIteration(5),
    SystemExit(3),
    KeyboardInterrupt(),
    OSError(2, "not here", "a path"),
    OSError("only text"),
    FileNotFoundError(2, "not here", "a path", None, "another"),
    ImportError("no", name="module", path="path"),
    SyntaxError("bad", ("file", 1, 2, "text", 1, 3)),
    UnicodeDecodeError("utf8", b"\xff", 0, 1, "bad byte"),
    MissingKeyError("a key is missing"),
    Plain("text", [1, 2]),
    Stubborn("one", 2),
    KeywordOnly(code=7),
    NoArguments(),
    Missing("a path"),
    Slotted(3),
    Frozen(9),
    Reducing("a", "b"),
    RemoteError("some.Type", "message", "story"),
    json.JSONDecodeError("bad", "{]", 1),
    subprocess.CalledProcessError(3, ["command"], b"out", b"err"),
]


@pytest.mark.parametrize("exc", ordinary, ids=lambda exc: type(exc).__name__)
def test_type_message_arguments_and_attributes(exc):
    result = round_trip(exc)
    assert type(result) is type(exc)
    assert str(result) == str(exc)
    assert repr(result) == repr(exc)
    assert result.args == exc.args
    assert vars(result) == vars(exc)
    for name in "errno strerror filename filename2 name path code value lineno msg".split():
        assert getattr(result, name, None) == getattr(exc, name, None)


def test_names_for_suggestions():
    error = caught(lambda: no_such_name)  # noqa: F821 - it is missing
    assert round_trip(error).name == "no_such_name"
    error = caught(lambda: [].no_such_attribute)
    assert round_trip(error).name == "no_such_attribute"


def test_frames():
    error = caught(outer, 0)
    result = round_trip(error)
    assert traceback.extract_tb(result.__traceback__) == traceback.extract_tb(error.__traceback__)
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(result.__traceback__)]
    assert names == ["caught", "outer", "divide"]
    text = "".join(traceback.format_exception(result))
    assert "return 1 / x" in text
    assert "^" not in text  # the columns of a stand-in would mark the wrong places


def test_another_traceback_may_be_sent():
    error = caught(outer, 0)
    result = round_trip(error, error.__traceback__.tb_next)
    assert names_in(result) == ["outer", "divide"]


def test_an_exception_that_was_never_raised():
    assert round_trip(ValueError()).__traceback__ is None


def test_a_debugger_can_walk_the_frames():
    result = round_trip(caught(outer, 0))
    output = io.StringIO()
    debugger = pdb.Pdb(
        stdin=io.StringIO("where\nup\nlist\ndown\np __name__\nq\n"), stdout=output, nosigint=True
    )
    debugger.use_rawinput = False
    debugger.reset()
    debugger.interaction(None, result.__traceback__)
    text = output.getvalue()
    assert "divide()" in text
    assert "outer()" in text
    assert "return divide(x)" in text
    assert repr(__name__) in text


def test_raising_it_again_adds_to_the_traceback():
    result = round_trip(caught(outer, 0))

    def again():
        raise result

    names = names_in(caught(again))
    assert names == ["caught", "again", "caught", "outer", "divide"]


def test_long_tracebacks_are_cut_in_the_middle():
    def deeper(n):
        return deeper(n - 1) if n else divide(0)

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10 * MAX_FRAMES)
    try:
        error = caught(deeper, 2 * MAX_FRAMES)
    finally:
        sys.setrecursionlimit(limit)
    frames = traceback.extract_tb(round_trip(error).__traceback__)
    assert len(frames) == MAX_FRAMES
    assert frames[0].name == "caught"
    assert frames[-1].name == "divide"


def test_endless_recursion():
    def endless():
        return endless()

    result = round_trip(caught(endless))
    assert type(result) is RecursionError
    assert result.__traceback__ is not None


def raise_chain():
    try:
        try:
            divide(0)
        except ZeroDivisionError as error:
            raise Stubborn(1, 2) from error
    except Stubborn:
        raise KeyError("last")  # noqa: B904 - the context is the point


def test_cause_and_context():
    error = caught(raise_chain)
    result = round_trip(error)
    assert result.__cause__ is None
    assert not result.__suppress_context__
    middle = result.__context__
    assert type(middle) is Stubborn
    assert type(middle.__cause__) is ZeroDivisionError
    assert middle.__cause__ is middle.__context__
    assert middle.__suppress_context__
    assert names_in(middle.__cause__) == ["raise_chain", "divide"]


def test_a_suppressed_context():
    def hide():
        try:
            divide(0)
        except ZeroDivisionError:
            raise ValueError("hidden") from None

    result = round_trip(caught(hide))
    assert result.__cause__ is None
    assert result.__suppress_context__
    assert type(result.__context__) is ZeroDivisionError


def test_circles():
    first, second = ValueError("first"), Frozen(2)
    object.__setattr__(second, "__context__", first)
    first.__context__ = second
    result = round_trip(first)
    assert type(result.__context__) is Frozen
    assert result.__context__.__context__ is result


def test_long_chains_end_somewhere():
    first = error = ValueError(0)
    for number in range(10 * MAX_EXCEPTIONS):
        error.__context__ = ValueError(number)
        error = error.__context__
    result, length = round_trip(first), 0
    while result is not None:
        result, length = result.__context__, length + 1
    assert length == MAX_EXCEPTIONS


def test_notes():
    error = Stubborn(1, 2)
    error.add_note("first note")
    error.add_note("second note")
    assert round_trip(error).__notes__ == ["first note", "second note"]
    error.__notes__.append(3)
    assert round_trip(error).__notes__ == ["first note", "second note", "3"]
    assert not hasattr(round_trip(ValueError()), "__notes__")


def test_groups():
    inner = ExceptionGroup("inner", [caught(outer, 0), Stubborn(1, 2)])
    error = caught(raise_group, ExceptionGroup("outer", [inner, KeyError("x"), inner.exceptions[0]]))
    error.add_note("a note")
    result = round_trip(error)
    assert type(result) is ExceptionGroup
    assert result.message == "outer"
    assert [type(each) for each in result.exceptions] == [ExceptionGroup, KeyError, ZeroDivisionError]
    assert [type(each) for each in result.exceptions[0].exceptions] == [ZeroDivisionError, Stubborn]
    assert result.exceptions[2] is result.exceptions[0].exceptions[0]
    assert names_in(result.exceptions[2])[-1] == "divide"
    assert result.__notes__ == ["a note"]
    assert type(round_trip(BaseExceptionGroup("x", [KeyboardInterrupt()]))) is BaseExceptionGroup


def raise_group(group):
    raise group


def test_groups_of_a_type_of_their_own():
    result = round_trip(Group([ValueError(1)], 5))
    assert type(result) is Group
    assert result.code == 5
    assert result.message == "many"
    assert result.exceptions[0].args == (1,)


def test_a_member_that_cannot_be_sent_leaves_the_others_alone():
    result = round_trip(ExceptionGroup("some", [ValueError(1), RefusesToGo("x"), KeyError(2)]))
    assert [type(each) for each in result.exceptions] == [ValueError, RemoteError, KeyError]


@pytest.mark.parametrize(
    "make",
    [
        lambda: RefusesToCome("its words"),
        lambda: RefusesToGo("its words"),
        lambda: Plain("its words", threading.Lock()),
        lambda: Plain("its words", (i for i in ())),
    ],
)
def test_a_stand_in_tells_what_is_known(make):
    error = make()
    error.add_note("a note")
    error.__cause__ = ValueError("the cause")
    result = round_trip(caught(raise_group, error))
    assert type(result) is RemoteError
    assert isinstance(result, WorkerError)
    assert isinstance(result, GraphmillError)
    assert result.type_name == f"{__name__}.{type(error).__name__}"
    assert result.message == str(error)
    assert "in raise_group" in result.story
    assert "raise group" in result.story
    assert "its words" in str(result)
    assert traceback.extract_tb(result.__traceback__)[-1].name == "raise_group"
    assert result.__cause__.args == ("the cause",)
    assert result.__notes__ == ["a note"]
    assert repr(round_trip(result)) == repr(result)  # and on to the next process


def test_a_cause_that_cannot_be_sent_leaves_the_exception_alone():
    error = ValueError("mine")
    error.__cause__ = RefusesToCome("not mine")
    result = round_trip(error)
    assert type(result) is ValueError
    assert type(result.__cause__) is RemoteError


def test_an_exception_without_words():
    result = round_trip(Mute())
    assert type(result) is Mute
    error = Mute(threading.Lock())
    assert "cannot be shown" in round_trip(error).message


def test_local_classes():
    class Local(Exception):
        def __init__(self, a, b):
            super().__init__(a)
            self.b = b

    result = round_trip(Local(1, 2))
    assert type(result) is Local
    assert result.b == 2


SCRIPT = """
import sys
from graphmill.tracebacks import encode_exception

class Odd(Exception):
    def __init__(self, a, *, b):
        super().__init__(a)
        self.b = b
    def __str__(self):
        return f"{self.args[0]} {self.b}"

def fail():
    raise Odd(1, b=2)

try:
    fail()
except Odd as error:
    sys.stdout.buffer.write(encode_exception(error))
"""


def test_classes_of_main_come_to_another_process():
    source = Path(__file__).parents[1] / "src"
    paths = f"import sys; sys.path[:0] = [{str(source)!r}, {sysconfig.get_path('purelib')!r}]\n"
    run = subprocess.run([sys.executable, "-c", paths + SCRIPT], capture_output=True, check=True, timeout=60)
    result = decode_exception(run.stdout)
    assert type(result).__name__ == "Odd"
    assert str(result) == "1 2"
    assert result.b == 2
    assert names_in(result) == ["<module>", "fail"]


def test_a_class_that_is_missing_here():
    payload = encode_exception(caught(raise_group, Plain("its words")))
    assert b"Plain" in payload
    result = decode_exception(payload.replace(b"Plain", b"Plein"))
    assert type(result) is RemoteError
    assert result.type_name == f"{__name__}.Plein"
    assert result.message == "its words"


def test_nothing_is_registered():
    before = dict(copyreg.dispatch_table)
    round_trip(caught(raise_chain))
    assert copyreg.dispatch_table == before


class Falsy(Exception):
    def __bool__(self):
        return False


def test_an_exception_that_counts_as_false_keeps_its_type():
    error = decode_exception(encode_exception(Falsy("told")))
    assert type(error) is Falsy
    assert error.args == ("told",)
