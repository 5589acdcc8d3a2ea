"""A YAML file for `serve run`, read before anything starts. Ray itself ignores unknown keys."""

from typing import Any, Literal

from pydantic import Field, field_validator

from rtp_serve.config.base import Config
from rtp_serve.config.disaggregation import DisaggregatedConfig
from rtp_serve.config.exposure import require_keys_beyond_loopback
from rtp_serve.config.parse import parse_config, read_yaml
from rtp_serve.config.serving import AppConfig, ReplicaConfig
from rtp_serve.config.user_config import parse_user_config
from rtp_serve.errors import ConfigError, did_you_mean

_OUR_PACKAGE = "deployments."
_TOPOLOGIES: dict[str, type[AppConfig]] = {
    "deployments.aggregated:app": AppConfig,
    "deployments.disaggregated:app": DisaggregatedConfig,
}


class HttpOptions(Config):
    """Serve's HTTP proxies; what we do not read is Serve's to check."""

    host: str | None = "0.0.0.0"
    """Address to listen on; the default is Serve's own, and needs API keys."""

    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""

    root_path: str = ""
    """Prefix that a proxy in front strips."""

    request_timeout_s: float | None = None
    """Serve's own limit on a request."""

    keep_alive_timeout_s: int = 90
    """How long an idle connection stays open."""

    ssl_keyfile: str | None = None
    """TLS key."""

    ssl_certfile: str | None = None
    """TLS certificate."""

    ssl_keyfile_password: str | None = None
    """Password of the TLS key."""

    ssl_ca_certs: str | None = None
    """Certificates of clients' authorities."""


class ApplicationEntry(Config):
    """One element of `applications`."""

    name: str = "default"
    """Name of the application on the cluster."""

    import_path: str = ""
    """`package.module:builder`."""

    route_prefix: str | None = Field(default="/", pattern="^/")
    """Where it is mounted."""

    args: dict[str, Any] = Field(default_factory=dict)
    """What the builder gets."""

    deployments: list[dict[str, Any]] = Field(default_factory=list)
    """Serve's overrides of deployment options."""

    runtime_env: dict[str, Any] = Field(default_factory=dict)
    """Serve's."""

    host: str | None = None
    """Serve's; has no effect in a file with `applications`."""

    port: int | None = None
    """Serve's; has no effect in a file with `applications`."""

    autoscaling_policy: dict[str, Any] | None = None
    """Serve's application-level policy."""

    logging_config: dict[str, Any] | None = None
    """Serve's."""

    external_scaler_enabled: bool = False
    """Serve's."""

    @field_validator("import_path")
    @classmethod
    def _check_import_path(cls, path: str) -> str:
        if path.startswith(_OUR_PACKAGE) and path not in _TOPOLOGIES:
            raise ValueError(f"no such topology{did_you_mean(path, _TOPOLOGIES)}")
        return path

    @property
    def is_ours(self) -> bool:
        return self.import_path in _TOPOLOGIES

    @property
    def listens(self) -> bool:
        """Whether its ingress serves HTTP itself where Serve runs no proxy."""
        return self.is_ours and self.config.ingress.listens

    @property
    def config(self) -> AppConfig:
        """`args` of an application of ours. Raises ConfigError."""
        where = f"args of application {self.name!r}"
        return parse_config(_TOPOLOGIES.get(self.import_path, AppConfig), self.args, where)


class ServeFile(Config):
    """The whole file."""

    applications: list[ApplicationEntry] = Field(default_factory=list, min_length=1)
    """What to deploy."""

    http_options: HttpOptions = HttpOptions()
    """Where HTTP is served."""

    proxy_location: Literal["Disabled", "HeadOnly", "EveryNode"] = "EveryNode"
    """On which nodes HTTP is served."""

    grpc_options: dict[str, Any] = Field(default_factory=dict)
    """Serve's."""

    controller_options: dict[str, Any] | None = None
    """Serve's."""

    logging_config: dict[str, Any] | None = None
    """Serve's."""

    tracing_config: dict[str, Any] | None = None
    """Serve's."""

    target_capacity: float | None = None
    """Serve's."""

    def serves_http(self, application: ApplicationEntry) -> bool:
        """Whether an application is reached at `http_options`, by a proxy or by itself."""
        return self.proxy_location != "Disabled" or application.listens


def read_serve_file(path: str) -> ServeFile:
    """Read and check a file, with the arguments of our applications in it.

    Raises ConfigError naming every wrong key and value, and when an application would be open to
    other machines without a key.
    """
    file = parse_config(ServeFile, read_yaml(path), path)
    if file.proxy_location == "Disabled":
        _check_listeners([each for each in file.applications if each.listens])
    for application in file.applications:
        if application.is_ours:
            host = file.http_options.host if file.serves_http(application) else None
            require_keys_beyond_loopback(application.config, host)
            _check_overrides(application)
    return file


def _check_overrides(application: ApplicationEntry) -> None:
    """Serve hands a wrong user_config to replicas only when they have started."""
    replicas = {name: pool.replica for name, pool in application.config.pools}
    for override in application.deployments:
        name = override.get("name")
        if name in replicas and "user_config" in override:
            num_switched = parse_user_config(override["user_config"], name).switched
            if num_switched:
                _check_switched(application.config, replicas[name], override, num_switched)


def _check_switched(
    config: AppConfig, replica: ReplicaConfig, override: dict[str, Any], num_switched: int
) -> None:
    """Whether so many replicas can have the other role."""
    where = f"user_config of {override['name']}: switched"
    if not (isinstance(config, DisaggregatedConfig) and config.switching):
        raise ConfigError(
            f"{where}: must be 0, got {num_switched}: replicas change roles only in "
            "applications with `switching: true` in their args"
        )
    if replica.keeps_targets:
        raise ConfigError(f"{where}: must be 0, got {num_switched}: autoscaling sets it")
    autoscaling = replica.autoscaling
    fewest = replica.num_replicas if autoscaling is None else autoscaling.min_replicas
    num_replicas = int(override.get("num_replicas", fewest))
    if num_switched >= num_replicas:
        raise ConfigError(
            f"{where}: must be less than the {num_replicas} replicas, as one keeps its role; "
            f"got {num_switched}"
        )


def _check_listeners(listeners: list[ApplicationEntry]) -> None:
    """Without a proxy nobody tells applications apart by their prefixes."""
    if len(listeners) > 1:
        names = ", ".join(repr(each.name) for each in listeners)
        raise ConfigError(
            f"applications {names} cannot all listen at http_options: leave ingress.listens to one "
            "or let a proxy listen (proxy_location: HeadOnly)"
        )
    for application in listeners:
        if application.route_prefix != "/":
            raise ConfigError(
                f"application {application.name!r}: with ingress.listens and without a proxy "
                f"route_prefix must be '/', got {application.route_prefix!r}"
            )
