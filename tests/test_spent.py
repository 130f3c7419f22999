from yxanul.spent import add_seconds, all_seconds, seconds_for


def test_what_was_spent_adds_up_by_name(tmp_path):
    assert (seconds_for(tmp_path, "tokens"), all_seconds(tmp_path)) == (0.0, {})
    for seconds in (1.5, 2.25):
        add_seconds(tmp_path, "tokens", seconds)
    add_seconds(tmp_path, "bpe-8192", 4.0)
    assert seconds_for(tmp_path, "tokens") == 3.75
    assert all_seconds(tmp_path) == {"tokens": 3.75, "bpe-8192": 4.0}
