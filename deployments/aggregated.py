"""The aggregated topology: every engine replica computes prompts and answers alike.

serve run configs/quickstart.yaml        (import_path: deployments.aggregated:app)
"""

from ray import serve

from deployments.args import ingress_options, replica_options, targets_of
from deployments.ingress import IngressDeployment
from deployments.master.joining import routing_options
from deployments.replicas import BuildEngine, EngineReplica, build_real_engine
from rtp_serve.config.serving import INGRESS, AppConfig


def app(config: AppConfig) -> serve.Application:
    """The application, for `serve run` and `serve.run(app(AppConfig(...)), name="rtp-serve")`."""
    return assemble(config, build_real_engine)


def assemble(config: AppConfig, build: BuildEngine) -> serve.Application:
    """The application over engines that `build` makes."""
    replicas = serve.deployment(EngineReplica, **replica_options(config)).bind(
        config.engine, build, None, routing_options(config), targets_of(config)
    )
    return serve.deployment(IngressDeployment, name=INGRESS, **ingress_options(config)).bind(
        replicas, config
    )
