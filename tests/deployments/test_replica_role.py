"""What role a replica has, by the words of Serve and of autoscaling."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployments.replica_role import ReplicaRole, RoleOptions
from rtp_serve.errors import ConfigError
from rtp_serve.routing.types import Role


class Stage:
    def __init__(self, *, can_switch: bool = True, is_autoscaled: bool = False) -> None:
        self.num_changes = 0
        self.told: int | None = None
        options = RoleOptions(Role.PREFILL, can_switch, is_autoscaled)
        self.role = ReplicaRole(options, "r", lambda: self.told, self.changed)

    def changed(self) -> None:
        self.num_changes += 1


def test_the_role_follows_number_and_rank():
    stage = Stage()
    stage.role.configure(0, 1)
    assert (stage.role.current, stage.num_changes) == (Role.PREFILL, 0)
    stage.role.configure(1, 1)
    assert (stage.role.current, stage.role.is_switched) == (Role.DECODE, True)
    stage.role.configure(1, 2)  # another one took its rank
    assert (stage.role.current, stage.num_changes) == (Role.PREFILL, 2)


@pytest.mark.parametrize(
    ("stage", "why"),
    [
        (Stage(can_switch=False), "replicas change roles only .*`switching: true`"),
        (Stage(is_autoscaled=True), "autoscaling sets it"),
    ],
)
def test_what_cannot_be_set_is_refused_with_one_error(stage: Stage, why: str):
    with pytest.raises(ConfigError, match=f"switched: must be 0, got 1: {why}"):
        stage.role.configure(1, 1)
    assert stage.role.current is Role.PREFILL


def test_autoscaling_s_last_word_holds_while_it_is_silent():
    async def scenario() -> None:
        stage = Stage(is_autoscaled=True)
        stage.role.configure(0, 1)
        stage.told = 1
        await stage.role.start()
        assert stage.role.current is Role.DECODE
        stage.told = None
        await stage.role._follow_once()
        assert stage.role.current is Role.DECODE
        stage.told = 0
        await stage.role._follow_once()
        assert stage.role.current is Role.PREFILL
        stage.role.close()

    asyncio.run(scenario())


def test_figures_tell_the_role_of_the_moment_alone():
    stage = Stage()
    stage.role.configure(1, 1)
    families = text_string_to_metric_families(stage.role.render())
    found = {(each.name, *each.labels.values()): each.value for f in families for each in f.samples}
    assert found["rtp_serve:replica_role", "decode"] == 1
    assert ("rtp_serve:replica_role", "prefill") not in found
    assert found["rtp_serve:role_switches_total", "decode"] == 1
    assert not Stage(can_switch=False).role.render()
