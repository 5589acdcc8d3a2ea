from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.kv_cache.block_changes import BlockChanges, BlockNews


def key(name: str) -> BlockHash:
    return BlockHash(name.encode())


def turn(changes: BlockChanges, *names: str) -> None:
    for name in names:
        changes.note(key(name))


def test_what_a_step_registers_counts_when_it_is_settled():
    changes = BlockChanges((), 8)
    turn(changes, "a")
    assert (changes.has_news, changes.take()) == (False, None)
    changes.settle()
    assert changes.has_news
    assert changes.take() == BlockNews((key("a"),))
    assert (changes.has_news, changes.take()) == (False, None)


def test_a_block_that_came_and_went_is_in_neither_list():
    changes = BlockChanges((), 8)
    turn(changes, "a", "b")
    changes.settle()
    turn(changes, "a")
    changes.settle()
    assert changes.take() == BlockNews((key("b"),))
    turn(changes, "b", "b")
    changes.settle()
    assert changes.take() is None
    turn(changes, "b", "c")
    changes.settle()
    assert changes.take() == BlockNews((key("c"),), (key("b"),))


def test_the_first_news_is_what_was_there():
    changes = BlockChanges([key("a")], 8)
    turn(changes, "b")
    changes.settle()
    news = changes.take()
    assert news is not None
    assert (set(news.added), news.is_all) == ({key("a"), key("b")}, True)


def test_too_many_changes_become_everything():
    changes = BlockChanges((), 2)
    turn(changes, "a", "b", "c")
    changes.settle()
    turn(changes, "a")
    changes.settle()
    news = changes.take()
    assert news is not None
    assert (set(news.added), news.is_all) == ({key("b"), key("c")}, True)
    turn(changes, "b")
    changes.settle()
    assert changes.take() == BlockNews((), (key("b"),))


def test_everything_may_be_nothing():
    changes = BlockChanges((), 2)
    changes.want_all()
    assert changes.take() == BlockNews((), is_all=True)
    assert changes.take() is None
