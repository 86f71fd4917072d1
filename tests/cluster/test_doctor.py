"""What `scaling doctor` finds, and what it says to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.doctor import (
    Check,
    check_extension_locks,
    check_fork_server,
    check_packages,
    check_ray,
    check_shared_memory,
    check_storage,
    examine,
    is_broken,
)


def test_this_machine_can_carry_a_study(tmp_path: Path) -> None:
    tracking = Check("tracking", "ok", "sqlite")
    checks = examine(tmp_path / "not" / "yet", None, preload=("torch",), others=[lambda: tracking])
    assert not is_broken(checks), checks
    names = [check.name for check in checks]
    assert names[0] == "python"
    assert names[-1] == "tracking"
    assert {"torch", "deepspeed", "cores", "memory", "disk", "shared memory", "storage", "fork server"} <= set(names)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    assert all(check.way_out for check in checks if check.status != "ok")


def test_a_missing_package_breaks_it() -> None:
    (check,) = check_packages(["no-such-package"])
    assert (check.status, check.found) == ("fail", "not installed")
    assert is_broken([check])


def test_a_folder_that_cannot_be_written_breaks_it() -> None:
    check = check_storage(Path("/proc/studies"))
    assert check.status == "fail"
    assert "SCALING_HOME" in check.way_out


def test_a_lock_that_a_killed_build_left_is_found(tmp_path: Path) -> None:
    lock = tmp_path / "py311_cpu" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    check = check_extension_locks(tmp_path)
    assert (check.status, check.way_out) == ("warn", f"If no build is running: rm {lock}")
    lock.unlink()
    assert check_extension_locks(tmp_path).status == "ok"


def test_a_preload_that_fails_breaks_it_with_its_traceback() -> None:
    check = check_fork_server(("no_such_module",))
    assert check.status == "fail"
    assert "No module named 'no_such_module'" in check.found


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://head:10001"])
def test_a_ray_address_that_does_not_serve_breaks_it(address: str) -> None:
    check = check_ray(address)
    assert check.status == "fail"
    assert address in check.found


def test_no_shared_memory_is_a_warning(tmp_path: Path) -> None:
    assert check_shared_memory(tmp_path / "shm").status == "warn"
