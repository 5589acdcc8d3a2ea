"""The applications of one file on a running cluster: deployed, waited for, removed again.

Other applications on the cluster stay as they are.
"""

import socket
import threading
from collections.abc import Mapping
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import ray
from pydantic import ValidationError
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from rtp_serve.cli.serve import base_url
from rtp_serve.config.parse import explain, read_yaml
from rtp_serve.config.serve_file import ApplicationEntry, HttpOptions, ServeFile
from rtp_serve.errors import ConfigError, RtpServeError

_POLL_S = 0.1
_HEALTH_TIMEOUT_S = 5.0


class DeployFailed(RtpServeError):
    """Serve gave an application up. The message is the error behind it."""

    code = "deploy_failed"


class Rollout:
    """What a file asks for, and what became of it. Raises ConfigError if Serve rejects the file."""

    def __init__(self, path: str, file: ServeFile) -> None:
        self._file = file
        try:
            self._schema = ServeDeploySchema.model_validate(read_yaml(path))
        except ValidationError as error:
            raise ConfigError(f"{path}: {explain(error)}") from error
        self._names = [application.name for application in file.applications]
        self._has_started_serve = False
        self._deployed: list[str] = []
        self.http = file.http_options
        """Where HTTP is served; on a cluster where Serve ran before, where it did already."""

    def check_port(self) -> None:
        """Raise ConfigError if something else listens on our HTTP port."""
        host, port = self._file.http_options.host, self._file.http_options.port
        if host is None or not any(map(self._file.serves_http, self._file.applications)):
            return
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise ConfigError(
                    f"cannot listen on {host} port {port}: {error.strerror}; stop what listens "
                    "there or set http_options.port"
                ) from error

    def start_serve(self) -> None:
        """Start Serve's controller and proxies unless they run."""
        client = _get_global_client(raise_if_no_controller_running=False)
        if client is None:
            self.check_port()
            self._has_started_serve = True
            serve.start(
                proxy_location=self._schema.proxy_location,
                http_options=self._schema.http_options.model_dump(),
                grpc_options=self._schema.grpc_options.model_dump(),
                controller_options=self._schema.controller_options,
            )
        else:
            options = client.http_config
            self.http = HttpOptions(
                host=options.host, port=options.port, root_path=options.root_path
            )

    def deploy(self) -> None:
        """Hand the applications to Serve. Raises ConfigError if one of the names is taken."""
        client = _get_global_client()
        details = client.get_serve_details()
        self._deployed = self._names
        # The public ways cannot set an application's autoscaling policy or deployment overrides.
        client.deploy_apps(with_neighbours(self._schema, details))

    def wait_until_ready(self) -> None:
        """Until every application runs and answers. Raises DeployFailed when one cannot."""
        poll = threading.Event()
        while not self._are_running():
            poll.wait(_POLL_S)
        for application in self._file.applications:
            if application.is_ours and self.has_http(application) and not self.http.ssl_certfile:
                url = base_url(self.http, application.route_prefix)
                while not _answers(f"{url}/health"):
                    poll.wait(_POLL_S)

    def has_http(self, application: ApplicationEntry) -> bool:
        """Whether HTTP reaches it: on a cluster where Serve ran before, as that Serve has it."""
        if self.http.host is None:
            return False
        if self._has_started_serve:
            return self._file.serves_http(application)
        return bool(serve.status().proxies) or application.listens

    def _are_running(self) -> bool:
        applications = serve.status().applications
        found = [applications[name] for name in self._names if name in applications]
        for overview in found:
            if overview.status == ApplicationStatus.DEPLOY_FAILED:
                messages = [each.message for each in overview.deployments.values()]
                raise DeployFailed(root_cause("\n".join([overview.message, *messages])))
        is_running = [overview.status == ApplicationStatus.RUNNING for overview in found]
        return len(found) == len(self._names) and all(is_running)

    def remove(self) -> None:
        """Delete the applications and wait until they are gone: open requests may finish, as long
        as the drain timeouts allow."""
        if ray.is_initialized() and self._deployed:
            _get_global_client().delete_apps(self._deployed)

    def stop_serve(self) -> None:
        """Stop Serve if it was started for these applications and no other has come since."""
        if self._has_started_serve and not serve.status().applications:
            serve.shutdown()


def with_neighbours(schema: ServeDeploySchema, details: Mapping[str, Any]) -> ServeDeploySchema:
    """`schema` with the applications that a cluster got from other files: what Serve gets is the
    whole list, and it deletes the rest. Raises ConfigError if one of the names is taken.
    """
    running = details["applications"]
    logging_config = schema.logging_config
    applications = []
    for application in schema.applications:
        if application.name in running:
            raise ConfigError(
                f"an application named {application.name!r} runs on this cluster already; "
                "delete it or choose another name"
            )
        own = application.logging_config or logging_config
        applications.append(application.model_copy(update={"logging_config": own}))
    neighbours = [
        entry["deployed_app_config"]
        for entry in running.values()
        if entry["source"] == "declarative" and entry["deployed_app_config"]
    ]
    return ServeDeploySchema.model_validate(
        {
            "applications": [
                *(each.model_dump(exclude_unset=True) for each in applications),
                *neighbours,
            ],
            "target_capacity": details.get("target_capacity") or schema.target_capacity,
            "tracing_config": schema.tracing_config,
        }
    )


def root_cause(message: str) -> str:
    """The last line of the innermost traceback in a Serve status message."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for line in reversed(lines):
        name, _, text = line.partition(": ")
        if text and name.startswith("rtp_serve.errors."):
            return text
    return lines[-1] if lines else "no reason given"


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=_HEALTH_TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False
