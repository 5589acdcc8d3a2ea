"""GET /routing: the fleet as its Master sees it."""

from rtp_serve.config.api import AuthConfig
from rtp_serve.routing.standing import DecisionRecord, FleetStanding, WorkerStanding
from rtp_serve.routing.types import Candidate, Role, WorkerId
from tests.unit.api.serving import make_client, make_engine
from tests.unit.api.test_auth import digest

ADMIN = {"authorization": "Bearer root"}
AUTH = AuthConfig(admin_token_sha256=digest("root"))
A = WorkerId("a")
STANDING = FleetStanding(
    "first",
    12.5,
    1,
    (WorkerStanding(A, Role.MIXED, "n", True, 0.1, 0.2, 1, 2, 100, 90, 5, 7, 9),),
    (
        DecisionRecord(
            "r",
            0.5,
            "default",
            "routed",
            "its turn",
            "a",
            "a",
            0.3,
            16,
            (Candidate(A, 0, 0.2, 0.1, 0, 16),),
        ),
    ),
)


def test_it_is_the_admin_s():
    assert make_client(make_engine(standing=STANDING), auth=AUTH).get("/routing").status_code == 401


def test_it_has_workers_and_decisions_with_their_numbers():
    answer = make_client(make_engine(standing=STANDING), auth=AUTH).get("/routing", headers=ADMIN)
    body = answer.json()
    assert body["workers"][0]["wait_s"] == 0.2
    assert body["workers"][0]["role"] == "mixed"
    assert body["decisions"][0]["candidates"][0]["num_cached_tokens"] == 16


def test_without_a_master_it_says_so():
    answer = make_client(make_engine(), auth=AUTH).get("/routing", headers=ADMIN)
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "no_master"
