from pathlib import Path

import pytest

from rtp_serve.config.serve_file import read_serve_file
from rtp_serve.errors import ConfigError

APPLICATION = "{name: a, import_path: 'deployments.aggregated:app', args: %s}"
LOOPBACK = "http_options: {host: 127.0.0.1}\n"


def write(directory: Path, text: str) -> str:
    path = directory / "config.yaml"
    path.write_text(text)
    return str(path)


def with_args(directory: Path, args: str, head: str = LOOPBACK) -> str:
    return write(directory, f"{head}applications: [{APPLICATION % args}]")


def test_the_arguments_of_our_applications_are_parsed(tmp_path: Path):
    file = read_serve_file(with_args(tmp_path, "{engine: {cache: {memory: 1GiB}}}"))
    assert file.applications[0].config.engine.cache.memory == 1 << 30


def test_the_arguments_of_other_applications_are_left_alone(tmp_path: Path):
    text = "applications: [{import_path: 'somebody.else:app', args: {anything: 1}}]"
    (application,) = read_serve_file(write(tmp_path, text)).applications
    assert not application.is_ours


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http_option: {}\napplications: []", "unknown key 'http_option'.*did you mean"),
        ("http_options: {prot: 1}", "http_options: unknown key 'prot'.*did you mean 'port'"),
        ("http_options: {port: 0}", "http_options.port"),
        ("applications: []", "applications: must not be empty"),
        ("applications: [{args: 3}]", "applications.0.args: expected a mapping"),
        ("applications: [{route_prefix: x}]", r"applications.0.route_prefix.*got 'x'"),
        (
            "applications: [{import_path: 'deployments.aggregate:app'}]",
            "no such topology; did you mean 'deployments.aggregated:app'",
        ),
        ("proxy_location: HeadOnl", "proxy_location.*'HeadOnly'"),
        ("applications: [{nme: x}]", "applications.0: unknown key 'nme'.*did you mean 'name'"),
        ("- a", "expected a mapping"),
    ],
)
def test_a_wrong_file_is_one_error_that_names_the_place(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        read_serve_file(write(tmp_path, text))


def test_a_wrong_argument_names_the_application(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"application 'a': unknown key 'engin'.*mean 'engine'"):
        read_serve_file(with_args(tmp_path, "{engin: {}}"))


def test_serves_own_default_address_is_public_and_needs_keys(tmp_path: Path):
    with pytest.raises(ConfigError, match="no API key"):
        read_serve_file(with_args(tmp_path, "{}", head=""))


def test_without_proxies_nothing_is_reachable(tmp_path: Path):
    read_serve_file(with_args(tmp_path, "{}", head="proxy_location: Disabled\n"))


def test_the_quickstart_listens_on_this_machine_alone():
    file = read_serve_file("configs/quickstart.yaml")
    assert (file.http_options.host, file.http_options.port) == ("127.0.0.1", 8000)
    assert [application.name for application in file.applications] == ["rtp-serve"]


LISTENING = "{ingress: {listens: true}}"
NO_PROXY = LOOPBACK + "proxy_location: Disabled\n"


def test_an_ingress_that_listens_itself_needs_no_proxy(tmp_path: Path):
    file = read_serve_file(with_args(tmp_path, LISTENING, NO_PROXY))
    assert file.serves_http(file.applications[0])
    silent = read_serve_file(with_args(tmp_path, "{}", NO_PROXY))
    assert not silent.serves_http(silent.applications[0])


def test_an_ingress_that_listens_itself_needs_keys_beyond_loopback(tmp_path: Path):
    head = "http_options: {host: 0.0.0.0}\nproxy_location: Disabled\n"
    with pytest.raises(ConfigError, match=r"http_options.host '0.0.0.0'"):
        read_serve_file(with_args(tmp_path, LISTENING, head))


def test_without_a_proxy_one_application_listens_at_the_root(tmp_path: Path):
    entry = "{name: %s, route_prefix: %s, import_path: 'deployments.aggregated:app', args: %s}"
    two = ", ".join(entry % (name, f"/{name}", LISTENING) for name in "ab")
    with pytest.raises(ConfigError, match="applications 'a', 'b' cannot all listen"):
        read_serve_file(write(tmp_path, f"{NO_PROXY}applications: [{two}]"))
    one = entry % ("a", "/a", LISTENING)
    with pytest.raises(ConfigError, match="route_prefix must be '/', got '/a'"):
        read_serve_file(write(tmp_path, f"{NO_PROXY}applications: [{one}]"))
    read_serve_file(write(tmp_path, f"{LOOPBACK}applications: [{two}]"))


@pytest.mark.parametrize(
    ("user_config", "message"),
    [
        ("{model: /models/tuned, revison: x}", "unknown key 'revison'.*did you mean 'revision'"),
        ("{revision: main}", "user_config of EngineReplica: model: must be given"),
        ("[a]", "user_config of EngineReplica: .*mapping"),
        ("null", "user_config of EngineReplica: .*mapping"),
    ],
)
def test_a_wrong_user_config_of_the_replicas_is_told_at_once(
    tmp_path: Path, user_config: str, message: str
):
    override = f"deployments: [{{name: EngineReplica, user_config: {user_config}}}]"
    application = f"{{import_path: 'deployments.aggregated:app', {override}}}"
    with pytest.raises(ConfigError, match=message):
        read_serve_file(write(tmp_path, f"{LOOPBACK}applications: [{application}]"))


@pytest.mark.parametrize(
    ("args", "override", "message"),
    [
        ("{}", "", "must be 0, got 1: replicas change roles only .*`switching: true`"),
        ("{switching: true}", "", "must be less than the 1 replicas, as one keeps its role; got 1"),
        (
            "{switching: true, prefill: {replica: {autoscaling: {max_replicas: 3}}}}",
            "",
            "must be 0, got 1: autoscaling sets it",
        ),
        ("{switching: true, prefill: {replica: {num_replicas: 2}}}", "", None),
        ("{switching: true}", ", num_replicas: 2", None),
        (
            "{switching: true, prefill: {replica: {autoscaling: "
            "{policy: ongoing-requests, target_ongoing_requests: 4, min_replicas: 2}}}}",
            "",
            None,
        ),
    ],
)
def test_replicas_switch_where_they_can(
    tmp_path: Path, args: str, override: str, message: str | None
):
    text = (
        f"{LOOPBACK}applications: [{{import_path: 'deployments.disaggregated:app', args: {args}, "
        "deployments: [{name: PrefillReplica, user_config: {model: x, switched: 1}"
        f"{override}}}]}}]"
    )
    if message is None:
        read_serve_file(write(tmp_path, text))
        return
    with pytest.raises(ConfigError, match=f"user_config of PrefillReplica: switched: {message}"):
        read_serve_file(write(tmp_path, text))
