"""A running SuperLink's Control API: registering sites, starting a run, asking how it is.

The app bundle of a run holds no code. It names the server app that is installed beside the link; a plain SuperNode
would run the client app that is installed beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.control_pb2_grpc import ControlStub
from flwr.supercore.fab import Fab
from flwr.supercore.grpc import create_channel
from flwr.supercore.interceptors import RuntimeVersionClientInterceptor

from fl.errors import LinkLost, LinkRefused

_TIMEOUT = 20.0
_BUNDLE = b"""\
[project]
name = "atalaia"
version = "0.1.0"

[tool.flwr.app]
publisher = "atalaia"
fab-format-version = 0

[tool.flwr.app.components]
serverapp = "fl.link_app:app"
clientapp = "fl.client_app:app"

[tool.flwr.app.config]
run-folder = ""
"""


@dataclass(frozen=True)
class RunState:
    """How a run of the link is."""

    status: str
    """pending, starting, running or finished."""
    ended: str
    """completed, failed or stopped; empty before."""
    details: str


class Link:
    """The Control API at an address of this machine."""

    def __init__(self, address: str, authority: Path) -> None:
        self._channel = create_channel(
            server_address=address,
            insecure=False,
            root_certificates=authority.read_bytes(),
            interceptors=[RuntimeVersionClientInterceptor(component_name="flwr CLI")],
        )
        self._stub = ControlStub(self._channel)

    def answers(self) -> bool:
        """Whether the link is there."""
        try:
            self._call("ListRuns", ListRunsRequest(limit=1), 2.0)
        except (LinkLost, LinkRefused):
            return False
        return True

    def register(self, public_pem: bytes) -> int:
        """Let a site in by its key; its node's number."""
        return int(self._call("RegisterNode", RegisterNodeRequest(public_key=public_pem)).node_id)

    def start(self, config: Mapping[str, Any]) -> int:
        """Start a run of the installed server app; the run's number."""
        content, _ = build_fab_from_files({"pyproject.toml": _BUNDLE})
        request = StartRunRequest(
            fab=fab_to_proto(Fab("", content, {})), override_config=user_config_to_proto(dict(config))
        )
        answer = self._call("StartRun", request)
        if not answer.run_id:
            raise LinkRefused("The link did not start the run; its log says why.")
        return int(answer.run_id)

    def state(self, run_id: int) -> RunState:
        """How a run is."""
        status = self._call("ListRuns", ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        return RunState(status.status, status.sub_status, status.details)

    def _call(self, name: str, request: Any, timeout: float = _TIMEOUT) -> Any:  # noqa: ANN401 (protobuf messages)
        try:
            return getattr(self._stub, name)(request, timeout=timeout)
        except grpc.RpcError as error:
            if error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                raise LinkLost(f"The link does not answer ({(error.details() or '')[:120]}).") from error
            raise LinkRefused(f"The link refuses {name}: {error.details() or error.code().name}.") from error

    def close(self) -> None:
        """End the connection."""
        self._channel.close()
