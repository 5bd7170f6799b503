"""What the stages after training need, made ready while training starts: its first seconds leave a core idle."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from storage.layout import Layout
from storage.tracking import open_store


@contextmanager
def ready_meanwhile(layout: Layout) -> Iterator[None]:
    """Open the tracking store and import what scoring needs, in a thread beside the block, whose end waits for it.

    A step that fails is left to whoever needs it, who tells why; after an error in the block no further step begins.
    """
    stopped = threading.Event()
    thread = threading.Thread(target=_make_ready, args=(layout, stopped), name="ready-meanwhile", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        stopped.set()
        raise
    finally:
        thread.join()


def _make_ready(layout: Layout, stopped: threading.Event) -> None:
    for step in (partial(open_store, layout), _import_scoring, _import_libraries):
        if stopped.is_set():
            return
        with suppress(Exception):
            step()


def _import_scoring() -> None:
    import fl.scoring  # noqa: F401


def _import_libraries() -> None:
    from fl.model import import_libraries

    import_libraries()
