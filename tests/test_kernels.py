"""What `make test` and `make test-kernels` run, and in which order."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import conftest
import kernels
import pytest


def test_the_settings_have_every_value_with_one_thread_and_with_two() -> None:
    values = {variable: {setting.get(variable) for setting in kernels.SETTINGS.values()} for variable in
              ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "INTERP_TEST_THREADS")}  # fmt: skip
    assert values["ATEN_CPU_CAPABILITY"] == {"default", "avx2"} and values["ONEDNN_MAX_CPU_ISA"] == {"SSE41", "AVX2"}
    assert "COMPATIBLE" in values["MKL_CBWR"] and values["INTERP_TEST_THREADS"] == {"1", "2"}
    assert all((kernels.TESTS / path).exists() for path in kernels.NUMERICAL)


def test_a_setting_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["kernels.py", "avx3"])
    with pytest.raises(SystemExit, match="no setting is called 'avx3'; choose from oldest, avx2"):
        kernels.main()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_worker_begins_with_slow_tests(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", str(workers))
    slow = {5, 6, 40, 71, 72, 73}
    before = [
        SimpleNamespace(n=n, path=Path(f"{n // 10}.py"), get_closest_marker=lambda name, n=n: n in slow or None)
        for n in range(100)
    ]
    items = list(before)
    conftest.pytest_collection_modifyitems(items)  # type: ignore[arg-type]
    found = [item.n for item in items]
    assert sorted(found) == list(range(100))
    if workers == 1:
        assert items == before
        return
    starts = [100 * at // workers for at in range(workers)]
    assert all(found[start] in slow for start in starts)
    at = [found.index(n) for n in (71, 72, 73)]
    assert at == [at[0], at[0] + 1, at[0] + 2]  # one file, one worker
    rest = [n for n in found if n not in slow]
    assert rest == sorted(rest)
