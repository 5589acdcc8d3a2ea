"""The disaggregated topology: prefill replicas compute prompts, decode replicas the answers.

serve run configs/disaggregated.yaml     (import_path: deployments.disaggregated:app)
"""

from ray import serve

from deployments.args import ingress_options, replica_options, targets_of
from deployments.ingress import IngressDeployment
from deployments.kv_transfer.exchange import ExchangeOptions
from deployments.master.joining import routing_options
from deployments.replicas import BuildEngine, EngineReplica, build_real_engine
from rtp_serve.config.disaggregation import DECODE_REPLICA, PREFILL_REPLICA, DisaggregatedConfig
from rtp_serve.routing.types import Role


def app(config: DisaggregatedConfig) -> serve.Application:
    """The application, for `serve run` and `serve.run(app(DisaggregatedConfig(...)))`."""
    return assemble(config, build_real_engine)


def assemble(config: DisaggregatedConfig, build: BuildEngine) -> serve.Application:
    """The application over engines that `build` makes."""
    ports = config.channel.tcp_port_range
    prefill, decode = config.prefill_app, config.decode_app
    is_exact = prefill.engine.parallel == decode.engine.parallel
    prefill_replicas = serve.deployment(
        EngineReplica, name=PREFILL_REPLICA, **replica_options(prefill)
    ).bind(
        prefill.engine,
        build,
        ExchangeOptions(config.transfer, ports),
        routing_options(config.master, Role.PREFILL),
        targets_of(prefill),
    )
    decode_replicas = serve.deployment(
        EngineReplica, name=DECODE_REPLICA, **replica_options(decode)
    ).bind(
        decode.engine,
        build,
        ExchangeOptions(config.transfer, ports, prefill_replicas, is_exact),
        routing_options(config.master, Role.DECODE),
        targets_of(decode),
    )
    return serve.deployment(IngressDeployment, **ingress_options(config)).bind(
        decode_replicas, config, [prefill_replicas]
    )
