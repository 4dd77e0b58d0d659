"""What stands around a command: streams closed, full or short of letters, other programs' settings.

None of it fails a command whose work is done, nor changes what it draws.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, cast

from lnsim.cli.exits import LOST


class Output:
    """A text stream that takes everything: `fault` is why something could not be written, or None.

    Letters that its encoding lacks are written as escapes.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.fault: OSError | None = None

    def write(self, text: str) -> int:
        """Writes `text`, or escapes, or notes why not."""
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError as error:
            self.fault = self.fault or error
        return len(text)

    def flush(self) -> None:
        """Writes what was kept back; what cannot be written is dropped, now and from now on."""
        try:
            self._stream.flush()
        except OSError as error:
            self.fault = self.fault or error
        if self.fault is not None:
            # Python would try again when it ends, and exit with a code of its own.
            with suppress(OSError), open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())

    def code(self, code: int) -> int:
        """The exit code of a command that ended with `code` and wrote to this.

        A reader that has had enough, such as head, is no fault.
        """
        broken = self.fault is not None and not isinstance(self.fault, BrokenPipeError)
        return LOST if broken and code == 0 else code

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def settled() -> Iterator[Output]:
    """Inside, the standard streams are open and take everything; gives standard output.

    A matplotlib imported inside draws without a display, whatever MPLBACKEND says: a notebook's
    backend may not be installed here, and matplotlib then refuses to be imported.
    """
    before = {name: getattr(sys, name) for name in ("stdin", "stdout", "stderr")}
    backend = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "agg"
    with ExitStack() as stack:
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if before[name] is None:
                setattr(sys, name, stack.enter_context(_nothing(mode)))
        output, errors = Output(sys.stdout), Output(sys.stderr)
        sys.stdout, sys.stderr = cast(Any, output), cast(Any, errors)
        try:
            yield output
        finally:
            output.flush()
            if output.fault is not None and not isinstance(output.fault, BrokenPipeError):
                reason = output.fault.strerror or output.fault
                errors.write(f"lnsim: standard output cannot be written: {reason}\n")
            errors.flush()
            for name, stream in before.items():
                setattr(sys, name, stream)
            del os.environ["MPLBACKEND"]
            if backend is not None:
                os.environ["MPLBACKEND"] = backend


@contextmanager
def _nothing(mode: str) -> Iterator[Any]:
    """The null device, in the place of a closed standard stream.

    It takes the stream's number, which the next file opened would have taken, with all that
    libraries write to that stream.  Processes started by this one have it too.
    """
    with open(os.devnull, mode, encoding="utf-8") as stream:
        os.set_inheritable(stream.fileno(), True)
        yield stream
