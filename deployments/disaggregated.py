"""The disaggregated topology: prefill replicas compute prompts, decode replicas the answers.

serve run configs/disaggregated.yaml     (import_path: deployments.disaggregated:app)
"""

from ray import serve

from deployments.args import ingress_options, replica_options, targets_of
from deployments.ingress import IngressDeployment
from deployments.kv_transfer.options import ExchangeOptions
from deployments.master.joining import routing_options
from deployments.replica_role import RoleOptions
from deployments.replicas import BuildEngine, EngineReplica, build_real_engine
from rtp_serve.config.disaggregation import DECODE_REPLICA, PREFILL_REPLICA, DisaggregatedConfig
from rtp_serve.config.serving import INGRESS, AppConfig
from rtp_serve.routing.types import Role


def app(config: DisaggregatedConfig) -> serve.Application:
    """The application, for `serve run` and `serve.run(app(DisaggregatedConfig(...)))`."""
    return assemble(config, build_real_engine)


def assemble(config: DisaggregatedConfig, build: BuildEngine) -> serve.Application:
    """The application over engines that `build` makes."""
    prefill, decode = config.prefill_app, config.decode_app
    is_exact = prefill.engine.parallel == decode.engine.parallel
    switching = config.switching

    def replicas(role: Role, name: str, own: AppConfig) -> serve.Application:
        asks = role is Role.DECODE or switching
        return serve.deployment(EngineReplica, name=name, **replica_options(own, switching)).bind(
            own.engine,
            build,
            ExchangeOptions(
                config.transfer, config.channel.tcp_port_range, asks, switching, is_exact
            ),
            routing_options(config),
            targets_of(own),
            RoleOptions(role, switching, own.replica.keeps_targets),
        )

    return serve.deployment(IngressDeployment, name=INGRESS, **ingress_options(config)).bind(
        replicas(Role.DECODE, DECODE_REPLICA, decode),
        config,
        [replicas(Role.PREFILL, PREFILL_REPLICA, prefill)],
        role=Role.DECODE,
        switching=switching,
    )
