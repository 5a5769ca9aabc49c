"""What a process may use, read from trees of /proc and control groups as different systems have them."""

import logging
import os
import re

import psutil
import pytest

from graphmill.errors import ConfigError
from graphmill.machine import (
    available_cpus,
    cpu_bounds,
    memory_bounds,
    parse_bytes,
    parse_limit,
    physical_memory,
    total_memory,
)

GB = 10**9
#: The machine's memory in all trees here, in kB and in bytes.
KILOBYTES = 64_000_000
PHYSICAL = KILOBYTES * 1024
#: What version 1 says where there is no limit.
UNLIMITED = 9223372036854771712


class Machine:
    """A tree with a /proc and control groups; `groups` and `mounts` are written line by line."""

    def __init__(self, folder):
        self.folder = folder
        self.proc = folder / "proc"
        self.write("proc/meminfo", f"MemTotal:       {KILOBYTES} kB\nMemFree:        1 kB\n")
        self.groups = []
        self.mounts = ["22 27 0:21 / /proc rw,relatime - proc proc rw"]

    def write(self, path, text):
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else f"{text}\n".encode())

    def group(self, line):
        self.groups.append(line)
        self.write("proc/self/cgroup", "\n".join(self.groups))

    def mount(self, point, *, root="/", controllers=None, kind=None):
        """Mount a hierarchy, of version 1 if it has controllers, below this folder."""
        kind = kind or ("cgroup2" if controllers is None else "cgroup")
        options = "rw,nsdelegate" if controllers is None else f"rw,{controllers}"
        place = str(self.folder / point).replace("\\", "\\134").replace(" ", "\\040")
        self.mounts.append(f"31 23 0:28 {root} {place} rw,nosuid shared:9 master:1 - {kind} {kind} {options}")
        self.write("proc/self/mountinfo", "\n".join(self.mounts))

    @property
    def memory(self):
        return total_memory(proc=self.proc)

    @property
    def cpus(self):
        return available_cpus(proc=self.proc)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    return Machine(tmp_path)


@pytest.fixture
def v2(machine):
    machine.group("0::/a.slice/b.scope")
    machine.mount("cg")
    return machine


@pytest.fixture
def v1(machine):
    """Version 1 as systemd mounts it: controllers that go together have one hierarchy."""
    machine.group("5:memory:/a/b")
    machine.group("4:cpu,cpuacct:/a")
    machine.group("1:name=systemd:/a/b")
    machine.mount("cg/memory", controllers="memory")
    machine.mount("cg/cpu,cpuacct", controllers="cpu,cpuacct")
    machine.mount("cg/systemd", controllers="xattr,name=systemd")
    return machine


def test_without_groups_there_is_what_the_machine_has(machine):
    assert machine.memory == PHYSICAL
    assert machine.cpus == 8


def test_this_machine():
    assert 0 < total_memory() <= physical_memory() == psutil.virtual_memory().total
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)


def test_without_proc_the_system_is_asked_otherwise(tmp_path):
    assert total_memory(proc=tmp_path) == psutil.virtual_memory().total
    assert available_cpus(proc=tmp_path) >= 1


def test_without_affinity_all_cpus_count(machine, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert machine.cpus == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cpus == 1


# ---- memory


@pytest.mark.parametrize("folder", ["cg/a.slice/b.scope", "cg/a.slice", "cg"])
def test_v2_limits_of_all_groups_above_hold(v2, folder):
    for path in ("cg/a.slice/b.scope", "cg/a.slice", "cg"):
        v2.write(f"{path}/memory.max", "max")
    assert v2.memory == PHYSICAL
    v2.write(f"{folder}/memory.max", 3 * GB)
    assert v2.memory == 3 * GB


def test_the_least_limit_holds(v2):
    v2.write("cg/a.slice/b.scope/memory.max", 5 * GB)
    v2.write("cg/a.slice/memory.max", 2 * GB)
    assert v2.memory == 2 * GB
    v2.write("cg/a.slice/b.scope/memory.high", GB)
    assert v2.memory == GB


def test_limits_of_other_groups_do_not_hold(v2):
    v2.write("cg/a.slice/other.scope/memory.max", GB)
    v2.write("cg/a.slice/b.scope/below/memory.max", GB)
    assert v2.memory == PHYSICAL


@pytest.mark.parametrize("folder", ["cg/memory/a/b", "cg/memory/a"])
def test_v1_limits_of_all_groups_above_hold(v1, folder):
    for path in ("cg/memory/a/b", "cg/memory/a", "cg/memory"):
        v1.write(f"{path}/memory.limit_in_bytes", UNLIMITED)
    assert v1.memory == PHYSICAL
    v1.write(f"{folder}/memory.limit_in_bytes", 3 * GB)
    assert v1.memory == 3 * GB


def test_v1_tells_of_limits_that_cannot_be_seen(v1):
    v1.write("cg/memory/a/b/memory.limit_in_bytes", UNLIMITED)
    v1.write("cg/memory/a/b/memory.stat", f"cache 0\nhierarchical_memory_limit {UNLIMITED}\nrss 1")
    assert v1.memory == PHYSICAL
    v1.write("cg/memory/a/b/memory.stat", f"cache 0\nhierarchical_memory_limit {4 * GB}\nrss 1")
    assert v1.memory == 4 * GB


def test_limits_above_what_the_machine_has(v2):
    v2.write("cg/a.slice/b.scope/memory.max", 2 * PHYSICAL)
    assert v2.memory == PHYSICAL


def test_both_versions_at_once(machine):
    machine.group("4:memory:/session")
    machine.group("1:cpu:/")
    machine.group("0::/unified")
    machine.mount("cg/memory", controllers="memory")
    machine.mount("cg/cpu", controllers="cpu")
    machine.mount("cg/unified")
    # Names of one hierarchy mean nothing in the other.
    machine.write("cg/unified/session/memory.max", GB)
    machine.write("cg/memory/unified/memory.limit_in_bytes", GB)
    assert machine.memory == PHYSICAL
    machine.write("cg/memory/session/memory.limit_in_bytes", 7 * GB)
    assert machine.memory == 7 * GB
    machine.write("cg/unified/unified/memory.max", 6 * GB)
    machine.write("cg/unified/unified/cpu.max", "300000 100000")
    assert machine.memory == 6 * GB
    assert machine.cpus == 3


def test_one_version_has_the_names_of_outside_and_the_other_has_not(machine):
    machine.group("4:memory:/docker/1234")
    machine.group("0::/")
    machine.mount("cg/memory", root="/outside/1234", controllers="memory")
    machine.mount("cg/unified")
    machine.write("cg/memory/memory.limit_in_bytes", 2 * GB)
    assert machine.memory == 2 * GB


def test_v1_in_docker_shows_the_own_group_under_its_outer_name(machine):
    machine.group("5:memory:/docker/1234")
    machine.group("4:cpuacct,cpu:/docker/1234")
    machine.mount("cg/memory", root="/docker/1234", controllers="memory")
    machine.mount("cg/cpu,cpuacct", root="/docker/1234", controllers="cpu,cpuacct")
    machine.write("cg/memory/memory.limit_in_bytes", 2 * GB)
    machine.write("cg/cpu,cpuacct/cpu.cfs_quota_us", 200000)
    machine.write("cg/cpu,cpuacct/cpu.cfs_period_us", 100000)
    assert machine.memory == 2 * GB
    assert machine.cpus == 2


@pytest.mark.parametrize(
    ("group", "root"),
    [
        ("/", "/"),  # a namespace of its own
        ("/docker/1234", "/"),  # the name outside, where the mount looks like a root
        ("/docker/1234", "/kubepods/pod5/1234"),  # names of two namespaces
        ("/../5678", "/"),  # moved out of the namespace
        ("/", "/.."),  # mounted outside of it
    ],
)
@pytest.mark.parametrize("controllers", [None, "memory"])
def test_containers_whose_group_has_another_name_than_its_mount(machine, group, root, controllers):
    machine.group(f"0::{group}" if controllers is None else f"7:memory:{group}")
    machine.mount("x/cg", root=root, controllers=controllers)
    name = "memory.max" if controllers is None else "memory.limit_in_bytes"
    machine.write(f"x/{name}", GB)  # what the mount does not show is not ours
    machine.write(f"x/5678/{name}", GB)
    assert machine.memory == PHYSICAL
    machine.write(f"x/cg/{name}", 2 * GB)
    assert machine.memory == 2 * GB


def test_a_group_below_the_one_that_is_mounted(machine):
    machine.group("0::/docker/1234/job")
    machine.mount("cg", root="/docker/1234")
    machine.write("cg/docker/1234/job/memory.max", GB)
    machine.write("cg/memory.max", 3 * GB)
    assert machine.memory == 3 * GB
    machine.write("cg/job/memory.max", 2 * GB)
    assert machine.memory == 2 * GB


def test_mounts_of_other_groups_are_left_alone(machine):
    machine.group("0::/docker/1234")
    machine.mount("theirs", root="/docker/5678")
    machine.mount("ours", root="/docker/1234")
    machine.write("theirs/memory.max", GB)
    machine.write("ours/memory.max", 2 * GB)
    assert machine.memory == 2 * GB


def test_names_with_blanks(machine):
    machine.group("0::/my:\x0b group")
    machine.mount("my cg\\", root="/")
    machine.write("my cg\\/my:\x0b group/memory.max", 2 * GB)
    assert machine.memory == 2 * GB


def test_other_mounts_are_left_alone(machine):
    machine.group("5:memory:/")
    machine.mount("cg", kind="tmpfs", controllers="memory")
    machine.write("cg/memory.limit_in_bytes", GB)
    assert machine.memory == PHYSICAL


GARBAGE = ["", "nonsense", "-1", "0", "1.5", "12 GB", "0x10", b"\xff\xfe\x00", "max max max", "\n\n"]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_is_no_limit(v1, garbage):
    v1.group("0::/")
    v1.mount("cg/unified")
    for name in ("memory.max", "memory.high", "cpu.max"):
        v1.write(f"cg/unified/{name}", garbage)
    for name in ("memory.limit_in_bytes", "memory.stat"):
        v1.write(f"cg/memory/a/b/{name}", garbage)
    for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"):
        v1.write(f"cg/cpu,cpuacct/a/{name}", garbage)
    assert v1.memory == PHYSICAL
    assert v1.cpus == 8


@pytest.mark.parametrize("file", ["cgroup", "mountinfo"])
@pytest.mark.parametrize(
    "garbage", ["", "nonsense", "0:", "0::", "a b c - cgroup2", "1 2 3 / \x00 rw - cgroup2 x y", b"\xff\xfe"]
)
def test_garbage_for_groups_and_mounts(v2, file, garbage):
    v2.write("cg/a.slice/b.scope/memory.max", GB)
    v2.write(f"proc/self/{file}", garbage)
    assert v2.memory == PHYSICAL
    assert v2.cpus == 8


def test_what_cannot_be_read_is_no_limit(v2):
    (v2.folder / "cg/a.slice/b.scope/memory.max").mkdir(parents=True)
    v2.write("cg/a.slice/memory.max", 2 * GB)
    assert v2.memory == 2 * GB


# ---- CPUs


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("max 100000", 8),
        ("100000 100000", 1),
        ("150000 100000", 2),
        ("5000 100000", 1),
        ("25000 10000", 3),
        ("9900000 100000", 8),
        ("200000", 8),
        ("200000 0", 8),
    ],
)
def test_v2_quota(v2, quota, cpus):
    v2.write("cg/a.slice/b.scope/cpu.max", quota)
    assert v2.cpus == cpus


def test_what_bounds_is_named(v2):
    v2.write("cg/a.slice/cpu.max", "150000 100000")
    v2.write("cg/a.slice/b.scope/memory.max", 3 * GB)
    v2.write("cg/a.slice/memory.max", "max")
    cpus, memory = cpu_bounds(proc=v2.proc), memory_bounds(proc=v2.proc)
    assert [bound.amount for bound in cpus] == [8, 1.5]
    assert cpus[1].source == str(v2.folder / "cg/a.slice/cpu.max")
    assert [bound.amount for bound in memory] == [PHYSICAL, 3 * GB]
    assert memory[1].source == str(v2.folder / "cg/a.slice/b.scope/memory.max")


def test_quota_of_a_group_above(v2):
    v2.write("cg/a.slice/b.scope/cpu.max", "400000 100000")
    v2.write("cg/a.slice/cpu.max", "150000 50000")
    assert v2.cpus == 3


@pytest.mark.parametrize(("quota", "cpus"), [(-1, 8), (100000, 1), (150000, 2), (1000, 1), (9900000, 8)])
def test_v1_quota(v1, quota, cpus):
    v1.write("cg/cpu,cpuacct/a/cpu.cfs_quota_us", quota)
    v1.write("cg/cpu,cpuacct/a/cpu.cfs_period_us", 100000)
    assert v1.cpus == cpus


def test_affinity_below_the_quota(v2, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    v2.write("cg/a.slice/b.scope/cpu.max", "400000 100000")
    assert v2.cpus == 1


# ---- amounts

AMOUNTS = [
    (1, 1),
    (10**12, 10**12),
    (4e9, 4 * GB),
    ("4000000001", 4 * GB + 1),
    ("1e9", GB),
    ("100.0", 100),
    ("7B", 7),
    ("800MB", 800 * 10**6),
    ("800mb", 800 * 10**6),
    ("4 GB", 4 * GB),
    (" 4  gb ", 4 * GB),
    ("1.5GiB", 3 << 29),
    ("1.5gib", 3 << 29),
    ("512k", 512_000),
    ("512K", 512_000),
    ("512Ki", 512 << 10),
    ("5kB", 5000),
    ("5KiB", 5 << 10),
    ("5MiB", 5 << 20),
    ("2m", 2_000_000),
    ("2g", 2 * GB),
    ("3TB", 3000 * GB),
    ("3 TiB", 3 << 40),
    ("1PB", 10**15),
    ("1PiB", 1 << 50),
    (".5 kB", 500),
    ("5. kB", 5000),
    ("1e3 kB", 10**6),
    ("1.5E-1MB", 150_000),
]


@pytest.mark.parametrize(("value", "nbytes"), AMOUNTS)
def test_amounts(value, nbytes):
    found = parse_bytes(value)
    assert found == nbytes
    assert type(found) is int


@pytest.mark.parametrize(("value", "nbytes"), AMOUNTS)
def test_amounts_as_dask_reads_them(value, nbytes):
    utils = pytest.importorskip("dask.utils")
    assert utils.parse_bytes(value) == nbytes


def test_numbers_of_numpy():
    numpy = pytest.importorskip("numpy")
    assert parse_bytes(numpy.int64(5)) == 5
    assert parse_bytes(numpy.float32(4)) == 4
    assert type(parse_bytes(numpy.int64(5))) is int


def test_digits_are_not_lost():
    assert parse_bytes(str(2**53 + 1)) == 2**53 + 1


NO_AMOUNTS = [
    *(0, -1, 0.5, 2.5, float("nan"), float("inf"), -float("inf"), True, b"5", [], 1j),
    *"0|-5|-5MB|0 GB|nan|inf|infGB|GB|5 foos|5 XB|5i|5iB|5 k B|5 5|1,5GB|2.5|0.5|2.5B|0.0001kB".split("|"),
    *("", "1e999", "1e999 GB", "1e-999 GB", "9" * 5000, "٣GB", "4GB\0"),
]


@pytest.mark.parametrize("value", [None, *NO_AMOUNTS])
def test_what_is_no_amount(value):
    with pytest.raises(ConfigError, match=r"'800MB', '4 GB', '1\.5GiB' or '512k', and more than 0") as raised:
        parse_bytes(value)
    assert str(raised.value).endswith(f"got {value!r}")


@pytest.mark.parametrize("value", ["60%", "100 %"])
def test_amounts_are_no_parts(value):
    with pytest.raises(ConfigError):
        parse_bytes(value)


@pytest.mark.parametrize(
    ("value", "limit"),
    [
        (None, 800),
        ("60%", 600),
        (" 12.5 % ", 125),
        ("100%", 1000),
        ("0.15%", 1),
        (1000, 1000),
        ("1kB", 1000),
        (7.0, 7),
    ],
)
def test_limits(value, limit, caplog):
    found = parse_limit(value, 1000)
    assert found == limit
    assert type(found) is int
    assert caplog.text == ""


@pytest.mark.parametrize("value", ["2kB", "150%", 1001, 2000.0])
def test_limits_above_what_there_is_are_taken_down(value, caplog):
    with caplog.at_level(logging.WARNING, logger="graphmill"):
        assert parse_limit(value, 1000) == 1000
    [record] = caplog.records
    assert re.search(rf"limit of {value}( bytes)? was asked for, but only 1000 bytes", record.getMessage())


@pytest.mark.parametrize("value", [*NO_AMOUNTS, "0%", "-5%", "%", "nan%", "0.01%", "1e999%", "5%%"])
def test_what_is_no_limit(value):
    with pytest.raises(ConfigError, match="or a part of what there is such as '60%', and more than 0; got"):
        parse_limit(value, 1000)
