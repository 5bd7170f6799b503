"""Flow: run a federation of real sites; what the deployment `federate` starts and watches."""

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed, State

from flows.config import RunConfig
from flows.link import LinkRun, LinkSettings
from flows.site_rules import federation_rules
from flows.terminal_sites import sites_report
from storage.layout import current
from storage.site_numbers import read_numbers


@flow(name="federate", persist_result=False)
def federate(config: RunConfig, link: LinkSettings) -> State[None]:
    """Run the link until the federation's last round is judged; its sites are started by their own operators.

    Args:
        config: The run: a preset, and what differs from it. The number of clients is that of the registered sites.
        link: Where the link listens, and the folder of its certificates and registered sites.
    """
    rules, model = federation_rules(config, link.certs, link.model_port, current())
    logger = get_run_logger()
    logger.info("The rules have the SHA-256 %s", rules.sha256)
    run = LinkRun(rules, link, current(), logger.info, model)
    folder = run.run(signals=False)
    report = sites_report(read_numbers(folder), run.names)
    create_markdown_artifact(report, key="sites", description=f"The sites of {run.run_id}")
    return Completed(message=f"{run.run_id}: {rules.federation.rounds} rounds with {len(run.names)} sites.")
