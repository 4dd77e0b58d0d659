"""A dispatch mode that sees every torch operation before and after it, and changes none.

torch keeps for the whole process whether a mode is on.  On entry a mode notes what that was, and on
leaving it sets it back; of two threads that leave theirs in the order in which they entered them,
the second would set it to what the first had made it, for ever.  So one thread has its modes on at
a time: they may be nested, and another thread waits.
"""

from __future__ import annotations

from threading import RLock
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

_ALONE = RLock()


class Watching(TorchDispatchMode):
    """Calls `before` and `after` around each operation of the thread that entered the mode.

    The two may raise, and so stop the computation; what they return is not used.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here; True would import torch's compiler, which is slow

    def __enter__(self) -> Any:
        _ALONE.acquire()
        try:
            return super().__enter__()
        except BaseException:
            _ALONE.release()
            raise

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
        finally:
            _ALONE.release()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.before(func, args, kwargs)
        result = func(*args, **kwargs)
        self.after(func, result)
        return result

    def before(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """What is done before `func` is called with these arguments."""

    def after(self, func: Any, result: Any) -> None:
        """What is done with what `func` returned."""
