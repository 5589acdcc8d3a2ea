import msgspec

from tests.unit.loader.store_files import make_key


def test_every_field_of_a_key_changes_the_name():
    names = {make_key().name}
    for field in msgspec.structs.fields(make_key()):
        changed = 7 if field.type is int else "other"
        names.add(msgspec.structs.replace(make_key(), **{field.name: changed}).name)
    assert len(names) == 1 + len(msgspec.structs.fields(make_key()))
