"""What the template process is called with."""

import ast
import sys
from pathlib import Path

import graphmill
from graphmill.workers import launch


def test_environment_pins_threads_and_hashes():
    chosen = launch.environment({"OMP_NUM_THREADS": "16", "HOME": "/home/me", "PYTHONPATH": "x"})
    assert chosen["OMP_NUM_THREADS"] == chosen["MKL_NUM_THREADS"] == "1"
    assert chosen["HOME"] == "/home/me"
    assert chosen["PYTHONPATH"] == "x"
    assert chosen["PYTHONHASHSEED"] == "0"


def test_environment_keeps_a_hash_seed_but_not_chance():
    assert launch.environment({"PYTHONHASHSEED": "77"})["PYTHONHASHSEED"] == "77"
    assert launch.environment({"PYTHONHASHSEED": "random"})["PYTHONHASHSEED"] == "0"


def test_environment_keeps_other_settings_of_jemalloc():
    chosen = launch.environment({"MALLOC_CONF": "narenas:1"})
    assert chosen["MALLOC_CONF"] == "narenas:1,background_thread:false"
    assert chosen["JE_ARROW_MALLOC_CONF"] == "background_thread:false"


def test_command_leaves_no_name_in_main():
    code = launch.command(7, ["", "/a"])[-1]
    stored = [
        node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name) and node.id != "__import__"
    ]
    assert stored == []
    assert not any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(ast.parse(code)))
    assert code.endswith(".main(7)")


def test_command_survives_odd_paths():
    path = ["", "/ümlaut", "/quo'te", "/sur\udce4rogate", "/line\nbreak"]
    code = launch.command(7, path)[-1]
    assert code.isascii()
    [assignment, _] = ast.parse(code).body
    assert ast.literal_eval(assignment.value)[: len(path)] == path


def test_search_path_finds_graphmill():
    root = str(Path(graphmill.__file__).parents[1])
    assert launch.search_path(["", Path("/no string"), "/a"]) == ["", "/a", root]
    assert launch.search_path([root, "/a"]) == [root, "/a"]


def test_interpreter_options_can_be_read_again():
    options = launch._interpreter_options()
    assert all(isinstance(option, str) for option in options)
    assert "-c" not in options
    assert sys.executable == launch.command(7, [])[0]
