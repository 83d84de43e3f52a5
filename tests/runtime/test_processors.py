import os

import pytest

from fineprune_runtime.processors import usable_processors

HERE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "100001 100000\n"}, 2),  # rounded up
        ({"cpu.max": "1600000 100000\n"}, 16),
        ({"cpu.max": "damaged"}, None),
        ({"cpu.max": "1 0\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "90000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
    ],
)
def test_the_quota_of_a_container(tmp_path, files, most):
    _write(tmp_path, files)
    assert usable_processors(tmp_path, tmp_path / "none") == (HERE if most is None else min(HERE, most))


@pytest.mark.parametrize("quota_in", ["", "pod", "pod/box", "pod/box/own"])
@pytest.mark.parametrize(
    ("groups", "top", "files"),
    [
        ("0::/pod/box/own\n", "", {"cpu.max": "100000 100000\n"}),
        (
            "5:memory:/other\n4:cpu,cpuacct:/pod/box/own\n0::/\n",
            "cpu",
            {"cpu.cfs_quota_us": "100000\n", "cpu.cfs_period_us": "100000\n"},
        ),
    ],
)
def test_the_smallest_quota_of_nested_groups(quota_in, groups, top, files, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    mount, own = tmp_path / "mount", tmp_path / "own"
    own.write_text(groups)
    inner = mount / top / "pod" / "box" / "own"
    _write(inner.parent, {"cpu.max": "300000 100000\n", "own/cpu.max": "max 100000\n"})
    _write(mount, {"pod/sister/cpu.max": "1000 100000\n", "other/cpu.max": "1000 100000\n"})
    assert usable_processors(mount, own) == 3
    (inner.parent / "cpu.max").unlink()
    (inner / "cpu.max").unlink()
    _write(mount / top / quota_in, files)
    assert usable_processors(mount, own) == 1


@pytest.mark.parametrize("groups", ["", "damaged", "0::/", "0::/../..", "0::/docker/of-the-host", ":::"])
def test_groups_that_are_not_there(groups, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    _write(tmp_path, {"cpu.max": "200000 100000\n", "own": groups})
    assert usable_processors(tmp_path, tmp_path / "own") == 2


def _write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
