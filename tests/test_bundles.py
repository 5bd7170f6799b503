"""A site runs only what its operator installed: a bundle that sends a log line, at Flower's own node and at ours."""

import json
import sys
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.supercore.fab import Fab
from site_federations import NAMES, simulated_logs, tiny_rules
from site_processes import Programs, wait_until
from test_real_sites import free_ports

from fl.link import Link
from fl.site_app import FAILED
from flows.link import LinkRun, LinkSettings, _environment
from storage.certificates import issue, registered_sites
from storage.layout import Layout

_BUNDLE = {
    "pyproject.toml": b"""\
[project]
name = "thief"
version = "1.0.0"

[tool.flwr.app]
publisher = "somebody"
fab-format-version = 0

[tool.flwr.app.components]
serverapp = "thief:server"
clientapp = "thief:client"

[tool.flwr.app.config]
log = ""
out = ""
""",
    "thief.py": b"""\
import json
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()


@client.query("rules")
def steal(message, context):
    line = Path(context.run_config["log"]).read_text().splitlines()[0]
    return Message(RecordDict({"config": ConfigRecord({"line": line})}), reply_to=message)


@server.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(0.2)
    messages = [Message(RecordDict(), dst_node_id=node, message_type="query.rules") for node in nodes]
    found = {}
    for reply in grid.send_and_receive(messages, timeout=120):
        said = reply.error.reason if reply.has_error() else reply.content["config"]["line"]
        found[str(reply.metadata.src_node_id)] = said
    Path(context.run_config["out"]).write_text(json.dumps(found))
""",
}


@pytest.mark.long
def test_a_bundle_that_sends_a_log_line_succeeds_at_flowers_own_node_and_not_at_a_site(
    tiny_model: Path, tmp_path: Path
) -> None:
    logs, layout = simulated_logs(30, tmp_path), Layout(tmp_path / "link")
    certs, ports, programs = tmp_path / "certs", free_ports(4), Programs(tmp_path)
    issue(certs, NAMES)
    settings = LinkSettings(certs=certs / "link", port=ports[0], control_port=ports[1], app_port=ports[2])
    run = LinkRun(tiny_rules(tiny_model, layout), settings, layout, print, tiny_model)
    environment = _environment(tmp_path / "flower")
    try:
        programs.start("superlink", tmp_path, [
            "env", f"FLWR_HOME={environment['FLWR_HOME']}",
            # Flower's own link: the guarded one would not give the bundle to anybody.
            str(Path(sys.executable).parent / "flower-superlink"), *run.superlink_options(),
        ])  # fmt: skip
        link = Link(f"127.0.0.1:{ports[1]}", certs / "link" / "ca.crt")
        wait_until(link.answers, programs)
        theirs, ours = (link.register(site.public_pem) for site in registered_sites(certs / "link")[:2])
        programs.start("supernode", tmp_path, [
            "env", f"FLWR_HOME={tmp_path / 'supernode'}",
            str(Path(sys.executable).parent / "flower-supernode"),
            "--root-certificates", str(certs / "sites" / NAMES[0] / "ca.crt"),
            "--superlink", f"127.0.0.1:{ports[0]}",
            "--auth-supernode-private-key", str(certs / "sites" / NAMES[0] / "site.key"),
            "--clientappio-api-address", f"127.0.0.1:{ports[3]}",
        ])  # fmt: skip
        site = programs.site(
            tmp_path / "home", logs[1], certs / "sites" / NAMES[1], f"127.0.0.1:{ports[0]}", tiny_model
        )
        content, _ = build_fab_from_files(_BUNDLE)
        out = tmp_path / "stolen.json"
        config = {"log": str(logs[0]), "out": str(out)}
        answer = link._stub.StartRun(
            StartRunRequest(fab=fab_to_proto(Fab("", content, {})), override_config=user_config_to_proto(config))
        )
        assert answer.run_id
        wait_until(out.exists, programs, 240)
        found = json.loads(out.read_text())
        # The attack works where the bundle's code runs; so the test could fail.
        assert found[str(theirs)] == logs[0].read_text().splitlines()[0]
        assert found[str(ours)] == FAILED
        ledger = (tmp_path / "home" / "sites" / NAMES[1] / "ledger.jsonl").read_text()
        assert "GetFab" not in ledger
        assert not list((tmp_path / "home").rglob("thief*"))
        assert site.process.poll() is not None or "thief" not in site.text
        link.close()
    finally:
        programs.end()
