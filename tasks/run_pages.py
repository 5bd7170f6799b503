"""Where the flow run that is going on can be looked at later."""

import os

TEMPORARY = "ATALAIA_TEMPORARY_SERVER"
"""Set in the environment while the Prefect server ends with this process, and its addresses with it."""


def page_of_run() -> dict[str, str]:
    """The id of the flow run, and its page where the server lasts; empty outside of a run."""
    from prefect.runtime import flow_run

    page = None if os.environ.get(TEMPORARY) else flow_run.ui_url
    return {name: value for name, value in {"flow_run_id": flow_run.id, "flow_run_url": page}.items() if value}
