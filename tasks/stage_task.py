"""A stage as a Prefect task: reused where an intact one of the same key lies at rest, computed otherwise."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Concatenate, Generic, ParamSpec

from prefect import Task, task
from prefect.client.schemas.objects import TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings
from prefect.states import State

from storage.errors import StorageError
from storage.layout import current
from storage.stages import NewStage, Stage, load_stage, new_stage
from tasks.caching import edited_files, stage_key
from tasks.progress import StageEvent, announce
from tasks.stage_words import stage_facts

P = ParamSpec("P")


@dataclass(frozen=True)
class Retry:
    """When a failed stage is tried again: only after errors that another try can mend."""

    on: tuple[type[BaseException], ...] = ()
    times: int = 0
    first_delay: float = 2.0
    """Seconds before the first retry; four times longer before each next one."""


NEVER = Retry()


def stage(
    name: str,
    modules: tuple[str, ...] = (),
    unkeyed: tuple[str, ...] = (),
    retry: Retry = NEVER,
) -> Callable[[Callable[Concatenate[NewStage, P], None]], "StageTask[P]"]:
    """Make a function that fills a new stage's folder a cached task that returns the stage.

    `modules` adds to the key's source what the function runs without importing it (a child process); `unkeyed` names
    parameters that say where or how fast, and not what, so that they stay out of the key.
    """

    def decorate(write: Callable[Concatenate[NewStage, P], None]) -> StageTask[P]:
        return StageTask(name, write, (write.__module__, *modules), frozenset(unkeyed), retry)

    return decorate


class StageTask(Generic[P]):
    """A cached stage; calling it returns the stage at rest."""

    def __init__(
        self,
        name: str,
        write: Callable[Concatenate[NewStage, P], None],
        modules: tuple[str, ...],
        unkeyed: frozenset[str],
        retry: Retry,
    ) -> None:
        self.name = name
        self.modules = modules
        self.retry = retry
        self._write = write
        self._unkeyed = unkeyed
        self.__doc__ = write.__doc__

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key that a call with these arguments has."""
        bound = inspect.signature(self._write).bind(None, *args, **kwargs)
        bound.apply_defaults()
        inputs = list(bound.arguments.items())[1:]
        return stage_key(self.name, self.modules, {k: v for k, v in inputs if k not in self._unkeyed})

    def at_rest(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Whether a call with these arguments would find the stage and not compute it."""
        return self._is_at_rest(self.key(*args, **kwargs))

    def _is_at_rest(self, key: str) -> bool:
        return load_stage(current().stages, self.name, key) is not None and not _told_to_renew()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Stage:
        key = self.key(*args, **kwargs)
        reused = self._is_at_rest(key)
        announce(StageEvent(self.name, "started"))
        try:
            # A recorded result whose files are missing or damaged is a miss: the task runs and writes over it.
            self.task.with_options(refresh_cache=not reused)(key, args, kwargs)
        except BaseException:
            announce(StageEvent(self.name, "failed"))
            raise
        written = load_stage(current().stages, self.name, key)
        if written is None:
            raise StorageError(f"The stage {self.name} vanished while it was used; run again.")
        _log(self.name, written, reused)
        work_seconds = 0.0 if reused else written.work_seconds
        announce(StageEvent(self.name, "cached" if reused else "ran", written.counts, work_seconds=work_seconds))
        return written

    @functools.cached_property
    def task(self) -> Task[[str, Any, Any], dict[str, Any]]:
        """The Prefect task behind the stage."""
        delays = [self.retry.first_delay * 4**attempt for attempt in range(self.retry.times)]
        return task(
            name=self.name,
            # Else the name on the run's page ends in three digits of a random number.
            task_run_name=self.name,
            description=inspect.getdoc(self._write),
            cache_key_fn=self._cache_key,
            persist_result=True,
            result_serializer="json",
            retries=self.retry.times,
            retry_delay_seconds=delays or None,
            retry_condition_fn=_raised(self.retry.on),
        )(self._run)

    def _cache_key(self, context: TaskRunContext, parameters: dict[str, Any]) -> str:
        return f"{self.name}-{parameters['key']}"

    def _run(self, key: str, args: Any, kwargs: Any) -> dict[str, Any]:  # noqa: ANN401
        """Write the stage, unless an intact one of this key is there already."""
        root = current().stages
        found = None if _told_to_renew() else load_stage(root, self.name, key)
        if found is None:
            self._check_code()
            with new_stage(root, self.name, key) as new:
                self._write(new, *args, **kwargs)
            found = new.done
        return asdict(found)

    def _check_code(self) -> None:
        """Refuse to keep under the key of new source what the old, loaded before, would compute."""
        if edited := edited_files(self.modules):
            raise StorageError(
                f"{', '.join(edited)} changed since this run began, so that the stage {self.name} would be of another "
                "version than its key says; run again, what is done is reused."
            )


def _log(name: str, written: Stage, reused: bool) -> None:
    """A line in the flow run's log; Prefect's own lines about tasks do not say which task."""
    if FlowRunContext.get() is not None:
        facts = stage_facts(written.counts)
        how = "reused" if reused else "done"
        get_run_logger().info("%s", f"{name}: {how}{f', {facts}' if facts else ''}")


def _raised(errors: tuple[type[BaseException], ...]) -> Callable[[Task[..., Any], TaskRun, State[Any]], bool]:
    """Whether a failed state holds one of `errors`; a plain function, since Prefect takes no bound method here."""

    def condition(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
        return isinstance(state.data, errors)

    return condition


def _told_to_renew() -> bool:
    """Whether PREFECT_TASKS_REFRESH_CACHE asks for everything to be computed again."""
    return bool(get_current_settings().tasks.refresh_cache)
