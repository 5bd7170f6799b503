"""What later stages need, made ready while a server or training starts: their first seconds leave a core idle."""

import importlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial

from flows.config import ModelConfig
from storage.layout import Layout
from storage.tracking import open_store

Step = Callable[[], object]


def while_the_server_starts(layout: Layout, model: str) -> list[Step]:
    """What a run needs for certain: its flows and, before the first run, the usual model and what works with it.

    That model comes with the installation. One from elsewhere is left to its stage, whose page shows its download.
    """
    steps: list[Step] = [partial(importlib.import_module, "flows.experiment")]
    if model == ModelConfig().name and not (layout.models / model / "card.json").is_file():
        steps += [partial(_prepare_model, layout, model), *_for_scoring(layout)]
    return steps


def ready_meanwhile(layout: Layout) -> AbstractContextManager[None]:
    """Open the tracking store and import what scoring needs, beside the block, whose end waits for it."""
    return beside(_for_scoring(layout))


@contextmanager
def beside(steps: Sequence[Step], *, all_of_them: bool = True) -> Iterator[None]:
    """Take steps in a thread beside the block, one after the other; its end waits for all, or for the one in work.

    A step that fails is left to whoever needs it, who tells why; after an error in the block no further step begins.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_take, args=(steps, ended), name="beside", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        ended.set()
        raise
    finally:
        if not all_of_them:
            ended.set()
        # Also after Ctrl-C: a step that is cut off would leave half a model behind.
        thread.join()


def _take(steps: Sequence[Step], ended: threading.Event) -> None:
    for step in steps:
        if ended.is_set():
            return
        with suppress(Exception):
            step()


def _for_scoring(layout: Layout) -> list[Step]:
    return [partial(open_store, layout), _import_scoring, _import_libraries]


def _prepare_model(layout: Layout, name: str) -> None:
    from fl.model import prepare_model

    prepare_model(name, layout.models)


def _import_scoring() -> None:
    import fl.scoring  # noqa: F401


def _import_libraries() -> None:
    from fl.model import import_libraries

    import_libraries()
