"""The environment of a command: closed or full streams, limited encodings, matplotlib's backend.

None of these makes a command fail after its work is done, or changes its figures.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, cast

from lnsim.cli.exits import LOST


class Output:
    """A text stream that never raises: `fault` is the first error in writing, or None.

    Characters that its encoding lacks are written as escapes.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.fault: OSError | None = None

    def write(self, text: str) -> int:
        """Writes `text`, with escapes if needed, or records the error."""
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
        """Flushes the buffer; after an error this and all later output is dropped."""
        try:
            self._stream.flush()
        except OSError as error:
            self.fault = self.fault or error
        if self.fault is not None:
            # Otherwise Python would flush again at exit, fail, and change the exit code.
            with suppress(OSError), open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())

    def code(self, code: int) -> int:
        """The exit code of a command that ended with `code` and wrote to this stream.

        A reader that closes the pipe early, such as head, is not an error.
        """
        broken = self.fault is not None and not isinstance(self.fault, BrokenPipeError)
        return LOST if broken and code == 0 else code

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def settled() -> Iterator[Output]:
    """Inside, the standard streams are open and never raise; yields standard output.

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
    """The null device, in place of a closed standard stream.

    It takes the stream's file number.  Otherwise the next file opened would take that number and
    receive everything that libraries write to the stream.  Child processes inherit it.
    """
    with open(os.devnull, mode, encoding="utf-8") as stream:
        os.set_inheritable(stream.fileno(), True)
        yield stream
