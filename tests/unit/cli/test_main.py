import pytest

from rtp_serve.cli.main import main


def test_a_wrong_log_level_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("RTP_SERVE_LOG", "degub")
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert "did you mean 'debug'" in said
    assert len(said.splitlines()) == 1
