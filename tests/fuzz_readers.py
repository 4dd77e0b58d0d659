"""Coverage-guided fuzzing of one file reader, until it is stopped; needs atheris.

    python tests/fuzz_readers.py READER [-max_total_time=SECONDS ...]

READER is one of test_damaged_files.py's, `config`, or `array` for a member of an archive whose
checksum is right. What is made of a sound file is read or refused with a ValueError: anything
else, two seconds for one file, or 1 GiB of memory is a finding. The other arguments are
libFuzzer's.
"""

import contextlib
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lnsim", "tomllib", "zipfile", "numpy.lib"]):
    import zipfile

    from test_damaged_files import READERS, write_sound

    from lnsim.base import archive
    from lnsim.base import config as configs


def read_member(path):
    """Reads a file as the one member of an archive."""
    content = path.read_bytes()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("step.npy", content)
    return archive.read(path)


def main(name, *options):
    more = {"config": ("config.toml", configs.read_toml), "array": ("array.npy", read_member)}
    file, read = (READERS | more)[name]
    with tempfile.TemporaryDirectory() as folder:
        sound, seeds = Path(folder, "sound"), Path(folder, "seeds")
        sound.mkdir()
        seeds.mkdir()
        write_sound(sound)
        with zipfile.ZipFile(sound / "trajectory.npz") as whole:
            (sound / "array.npy").write_bytes(whole.read("step.npy"))
        (sound / file).rename(seeds / "sound")

        def one(data):
            (sound / file).write_bytes(data)
            with contextlib.suppress(ValueError):
                read(sound / file)

        limits = ["-timeout=2", "-rss_limit_mb=1024", "-max_len=200000"]
        atheris.Setup([sys.argv[0], *limits, *options, str(seeds)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
