import pytest

from rtp_serve.errors import ConfigError
from rtp_serve.registry import Registry

REGISTRY = Registry[type]("fruit", {"apple": "collections:OrderedDict"})


def test_a_name_is_imported_when_asked_for():
    assert REGISTRY.load("apple").__name__ == "OrderedDict"


def test_an_unknown_name_suggests_a_known_one():
    with pytest.raises(ConfigError, match=r"unknown fruit 'aple'; did you mean 'apple'\?"):
        REGISTRY.load("aple")
