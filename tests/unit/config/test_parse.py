from pathlib import Path

import pytest
from pydantic import BaseModel

from rtp_serve.config.api import ApiConfig
from rtp_serve.config.engine import CacheConfig, EngineConfig, SchedulerConfig, WeightStoreConfig
from rtp_serve.config.parse import parse_config, read_yaml
from rtp_serve.config.sizes import parse_bytes
from rtp_serve.errors import ConfigError, did_you_mean


def test_an_unknown_key_is_named_with_a_suggestion():
    with pytest.raises(
        ConfigError, match=r"unknown key 'max_num_seq'.*did you mean 'max_num_seqs'"
    ):
        parse_config(EngineConfig, {"scheduler": {"max_num_seq": 3}})


def test_every_unknown_key_is_named_beside_what_else_is_wrong():
    values = {"modle": "x", "scheduler": {"max_num_seq": 3, "max_queue": 4}, "num_threads": 0}
    with pytest.raises(ConfigError) as caught:
        parse_config(EngineConfig, values)
    message = str(caught.value)
    assert "scheduler: unknown key 'max_num_seq' in SchedulerConfig" in message
    assert "did you mean 'max_queued'?" in message
    assert "unknown key 'modle' in EngineConfig; did you mean 'model'?" in message
    assert "num_threads" in message


def test_braces_in_a_wrong_value_are_repeated_as_they_are():
    with pytest.raises(ConfigError, match=r"not a size: '\{x\}'"):
        parse_config(CacheConfig, {"memory": "{x}"})


def test_every_wrong_field_is_named_with_its_value():
    with pytest.raises(ConfigError) as caught:
        parse_config(EngineConfig, {"scheduler": {"max_num_seqs": 0}, "dtype": "int3"})
    message = str(caught.value)
    assert "scheduler.max_num_seqs" in message
    assert "(got 0)" in message
    assert "dtype" in message
    assert "'int3'" in message


def test_a_budget_too_small_for_the_seats_names_both_settings():
    values = {"scheduler": {"max_num_seqs": 64, "max_num_batched_tokens": 32}}
    with pytest.raises(ConfigError, match=r"max_num_seqs \(64\).*max_num_batched_tokens \(32\)"):
        parse_config(EngineConfig, values)


def test_configuration_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        EngineConfig().model = "other"  # type: ignore[misc]


def test_a_wrong_setting_of_the_weight_store_is_named_with_its_value():
    values = {"weight_store": {"max_size": "all", "enable": "perhaps", "directry": "/x"}}
    with pytest.raises(ConfigError) as caught:
        parse_config(EngineConfig, values)
    message = str(caught.value)
    assert "weight_store.max_size: not a size: 'all'" in message
    assert "weight_store.enable" in message
    assert "unknown key 'directry' in WeightStoreConfig; did you mean 'directory'?" in message


CONFIGS = [EngineConfig, CacheConfig, SchedulerConfig, WeightStoreConfig, ApiConfig]


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_field_has_a_default_and_a_docstring(cls: type[BaseModel]):
    for name, field in cls.model_fields.items():
        assert not field.is_required(), f"{cls.__name__}.{name} has no default"
        assert field.description, f"{cls.__name__}.{name} has no docstring"


@pytest.mark.parametrize(
    ("text", "size"),
    [(7, 7), ("7", 7), ("1.5GiB", 3 << 29), ("2 gb", 2 * 10**9), ("512MiB", 1 << 29)],
)
def test_sizes_are_read_as_people_write_them(text: object, size: int):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "1 parsec", -1, None, 1.5, "1e9"])
def test_what_is_no_size_is_refused(text: object):
    with pytest.raises(ValueError, match="size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("content", "message"), [("a: [", "not YAML"), ("- a\n", "expected a mapping"), ("", "mapping")]
)
def test_a_bad_file_is_one_clear_error(tmp_path: Path, content: str, message: str):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_yaml(str(path))


def test_a_file_that_is_not_text_is_one_clear_error(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_yaml(str(path))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        read_yaml(str(tmp_path / "nowhere.yaml"))


def test_a_suggestion_is_the_nearest_name_or_all_names():
    assert did_you_mean("temprature", ["temperature", "top_p"]) == "; did you mean 'temperature'?"
    assert did_you_mean("zzz", ["b", "a"]) == "; allowed: a, b"
