from rtp_serve.routing.roles import role_of_rank
from rtp_serve.routing.types import Role


def test_as_many_as_are_wanted_switch_and_the_first_one_never_does():
    def roles(num_switched: int) -> list[Role]:
        return [role_of_rank(Role.PREFILL, rank, num_switched) for rank in range(4)]

    assert roles(0) == [Role.PREFILL] * 4
    assert roles(2) == [Role.PREFILL, Role.DECODE, Role.DECODE, Role.PREFILL]
    assert roles(9) == [Role.PREFILL, Role.DECODE, Role.DECODE, Role.DECODE]


def test_others_than_prefill_and_decode_replicas_have_no_other_role():
    assert role_of_rank(Role.DECODE, 1, 1) is Role.PREFILL
    assert role_of_rank(Role.MIXED, 1, 1) is Role.MIXED
