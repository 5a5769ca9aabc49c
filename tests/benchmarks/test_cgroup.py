"""Memory control groups are found by what the system says, and end what exceeds them."""

import sys
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.cgroup import V1, V2, Group, NoGroup, own_group
from benchmarks.footprint import ProgramFailed, watch

MB = 1 << 20

MOUNT_V1 = "31 24 0:27 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
MOUNT_CPU = "32 24 0:28 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
MOUNT_V2 = "33 24 0:29 {root} {point} rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_the_group_of_version_one_is_found():
    groups = "9:name=systemd:/\n4:memory:/jobs/7\n1:cpu,cpuacct:/elsewhere\n"
    mounts = MOUNT_CPU + MOUNT_V1.format(root="/")
    assert own_group(groups, mounts) == (V1, Path("/sys/fs/cgroup/memory/jobs/7"))


def test_the_group_of_version_two_is_found():
    mounts = MOUNT_V2.format(root="/", point="/sys/fs/cgroup")
    assert own_group("0::/user/session\n", mounts) == (V2, Path("/sys/fs/cgroup/user/session"))


def test_the_group_is_found_below_what_is_mounted():
    mounts = MOUNT_V1.format(root="/docker/12")
    assert own_group("4:memory:/docker/12/x\n", mounts) == (V1, Path("/sys/fs/cgroup/memory/x"))


def test_version_one_goes_first_where_both_are_mounted():
    mounts = MOUNT_V2.format(root="/", point="/sys/fs/cgroup/unified") + MOUNT_V1.format(root="/")
    assert own_group("4:memory:/x\n0::/\n", mounts) == (V1, Path("/sys/fs/cgroup/memory/x"))
    assert own_group("4:memory:/x\n0::/\n", mounts.splitlines()[0])[0] is V2


@pytest.mark.parametrize("mounts", [MOUNT_CPU, MOUNT_V1.format(root="/other")])
def test_no_group_is_found_where_none_can_be_seen(mounts):
    with pytest.raises(NoGroup):
        own_group("4:memory:/x\n1:cpu:/\n", mounts)


@pytest.fixture
def group():
    try:
        made = Group.create(100 * MB)
    except NoGroup as reason:
        pytest.skip(f"no memory control group can be made here: {reason}")
    with made:
        yield made
    assert not made._folder.exists()


def test_what_exceeds_the_group_is_killed(group):
    program = f"data = b'x' * {200 * MB}"
    with pytest.raises(ProgramFailed) as failed:
        watch(group.command([sys.executable, "-c", program]))
    assert failed.value.code == -9
    assert group.kills == 1
    assert group.peak == pytest.approx(100 * MB, rel=0.1)


def test_children_are_in_it_too(group):
    program = f"""
import os
child = os.fork()
if not child:
    data = b"x" * {200 * MB}
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    # The system picks whom it kills: mostly the child, which is large, and at times its parent with it.
    with suppress(ProgramFailed):
        assert watch(group.command([sys.executable, "-c", program])).output == "-9\n"
    assert group.kills >= 1
    assert group.peak == pytest.approx(100 * MB, rel=0.1)


def test_what_still_runs_ends_with_the_group(group):
    child = int(watch(group.command(["/bin/sh", "-c", "sleep 600 & echo $!"])).output)
    assert Path(f"/proc/{child}").exists()
    group.close()
    group.close()
    # Whoever adopted it may not have reaped it yet.
    assert Path(f"/proc/{child}/cmdline").read_bytes() == b"" if Path(f"/proc/{child}").exists() else True
