from typing import Any

from starlette.testclient import TestClient

from rtp_serve.api.openai_app import build_app
from tests.unit.api.serving import make_client, make_engine, make_template, tiny_tokenizer


async def read() -> dict[str, Any]:
    return {"present": [{"role": "mixed", "num_replicas": 2}], "changes": []}


def test_the_record_is_shown():
    app = build_app(make_engine(), tiny_tokenizer(), make_template(), autoscaling=read)
    assert TestClient(app).get("/autoscaling").json()["present"][0]["num_replicas"] == 2


def test_where_nothing_scales_there_is_no_such_route():
    assert make_client().get("/autoscaling").status_code == 404
