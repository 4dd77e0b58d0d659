"""`lnsim info`: what is there, and what to do about what is not."""

import configparser
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numba
import pytest

import lnsim
from lnsim import backend
from lnsim.cli import info, main

pytestmark = pytest.mark.small

SETUP = Path(__file__).parents[2] / "setup.cfg"


@pytest.fixture
def without(monkeypatch):
    """As if these packages were not installed."""

    def remove(*packages):
        version = metadata.version

        def found(package):
            if package in packages:
                raise metadata.PackageNotFoundError(package)
            return version(package)

        monkeypatch.setattr(metadata, "version", found)
        for package in packages:
            monkeypatch.setitem(sys.modules, package, None)

    return remove


def entries():
    return dict(info._entries())


def test_the_command_tells_all_within_80_columns(capsys):
    assert main.main(["info"]) == 0
    out = capsys.readouterr().out
    for line in out.splitlines():
        # A path is not broken; it stands alone on what is left of its line.
        assert len(line) <= 80 or len(line.split()) <= 3
    names = ("lnsim", "python", "numpy", "backend numba", "threads", "devices", "cache", "pandas")
    for name in names:
        assert any(line.startswith(f"{name} ") for line in out.splitlines()), name
    assert f"lnsim           {metadata.version('lnsim')}, " in out
    assert entries()["lnsim"].endswith(f", {Path(lnsim.__file__).parent}")


def test_it_starts_in_a_fresh_interpreter():
    command = [sys.executable, "-W", "error", "-m", "lnsim", "info"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert "backend numba   ready" in done.stdout and done.stderr == ""


def test_what_is_missing_is_named_with_what_to_do(without):
    without("torch", "torchvision", "distributed", "asv", "pandas")
    found = entries()
    assert "not installed: pip install 'lnsim[torch]' (networks" in found["torch"]
    assert "not installed: pip install 'lnsim[torch]'" in found["torchvision"]
    assert "not installed: pip install 'lnsim[dask]'" in found["distributed"]
    assert "not installed: pip install 'lnsim[bench]'" in found["asv"]
    assert "not installed: pip install 'lnsim[notebook]'" in found["pandas"]
    assert found["devices"] == "cpu; for a GPU: pip install 'lnsim[torch]'"


def test_a_backend_without_its_package_names_the_extra(without, monkeypatch):
    without("torch")
    for name in [name for name in sys.modules if name.startswith("lnsim_torch")]:
        monkeypatch.delitem(sys.modules, name)
    assert "it needs torch: pip install 'lnsim[torch]'" in entries()["backend torch"]


def test_every_extra_named_holds_its_package():
    setup = configparser.ConfigParser()
    setup.read(SETUP)
    for package, _, install in info.OPTIONAL:
        if install != package:
            extra = install.removeprefix("lnsim[").removesuffix("]")
            assert f"\n{package}" in setup["options.extras_require"][extra], package


def test_a_broken_backend_is_told_and_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "lnsim_cracked.py").write_text(
        "raise OSError('no such\\nlibrary')", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = entries()
    assert found["backend cracked"] == "broken: OSError: no such library"
    assert found["backend numba"] == "ready"


def test_threads_and_devices(monkeypatch):
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    assert entries()["threads"].startswith("1, by NUMBA_NUM_THREADS, on ")
    monkeypatch.delenv("NUMBA_NUM_THREADS")
    assert entries()["threads"].endswith("one a core; for fewer set NUMBA_NUM_THREADS")
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"card {i}")
    assert entries()["devices"] == "cpu, cuda:0 card 0, cuda:1 card 1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in entries()["devices"]
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    assert "nvidia-smi must list one" in entries()["devices"]


def test_the_cache_is_where_the_kernels_are():
    folder = entries()["cache"].partition(",")[0]
    if numba.config.DISABLE_JIT:
        assert folder == "none"
        return
    lnsim.simulate(
        lnsim.gaussian_regression(3, 2), lnsim.ntk_init(4, 2), lnsim.GD(1e-3),
        steps=1, record_every=1,
    )  # fmt: skip
    assert list(Path(folder).glob("lnsim.simulation.neuron_loop.measure_rows-*.nbc"))


@pytest.mark.skipif(
    bool(numba.config.DISABLE_JIT),
    reason="it is about the folder of compiled code; with NUMBA_DISABLE_JIT there is none",
)
def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    numba.config.reload_config()  # not later, which would undo the next line
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path / "file"))
    told = entries()["cache"]
    assert told.startswith(f"{tmp_path / 'file'}/lnsim/") and "cannot be written: Not a dir" in told
    assert told.endswith("; set NUMBA_CACHE_DIR to one that can")


def test_a_version_that_nobody_wrote_down_is_unknown(without, capsys):
    without("lnsim")  # as where it is imported from an archive of its sources
    with pytest.raises(SystemExit, match="0"):
        main.main(["--version"])
    assert capsys.readouterr().out == "lnsim, version unknown: it is not installed\n"


def test_load_says_the_same_as_info(without):
    with pytest.raises(ValueError, match="backend 'nothing' is not installed: no package"):
        backend.load("nothing")
    assert info._backend("nothing") == "not installed: no package lnsim_nothing was found"
