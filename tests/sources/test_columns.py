from capfilt.sources.columns import find_roles, one_row_per_text, row_without_image
from capfilt.sources.values import key_text, plain, repair_text


def test_names_are_understood_in_any_case_and_stated_ones_count_first() -> None:
    found = find_roles(("URL", "TEXT", "caption", "pwatermark", "NSFW", "JPG", "hash"))
    assert (found.image, found.text, found.url, found.key) == ("JPG", "TEXT", "URL", None)
    assert dict(found.meta) == {"pwatermark": "pwatermark", "nsfw": "NSFW", "hash": "hash"}
    assert find_roles(("TEXT", "text", "caption")).text == "text"
    stated = find_roles(("text", "other", "uid", "key"), (("text", "other"),))
    assert (stated.text, stated.key, dict(stated.meta)) == ("other", "uid", {"key": "key"})


def test_hashes_are_compared_only_where_they_are_of_these_bytes() -> None:
    record = {"sha256": "AB" * 32, "md5": "no hash", "status": None}
    columns = find_roles(tuple(record))
    row = row_without_image("k", record, columns)
    assert (row.sha256, row.md5, row.meta) == ("ab" * 32, None, {"md5": "no hash"})
    row = row_without_image("k", record | {"status": "success"}, columns)
    assert (row.sha256, row.meta["sha256"], row.reason) == (None, "AB" * 32, None)
    row = row_without_image("k", record | {"status": b"failed_to_resize"}, columns)
    assert (row.reason, row.error) == ("download_failed", "failed_to_resize")


def test_a_list_of_texts_is_a_row_each() -> None:
    row = row_without_image("k", {}, find_roles(()))
    assert [(one.key, one.text) for one in one_row_per_text(row, ["a", None, b"b"])] == [
        ("k", "a"),
        ("k#1", None),
        ("k#2", "b"),
    ]
    assert [(one.key, one.text) for one in one_row_per_text(row, [])] == [("k", None)]
    (repaired,) = one_row_per_text(row, b"caf\xe9")
    assert (repaired.text, repaired.meta) == ("caf�", {"text_mended": True})


def test_values_are_made_fit_to_store() -> None:
    assert repair_text("a \ud83d\ude00 \ud800") == ("a \U0001f600 �", True)
    assert repair_text("�".encode()) == ("�", False)
    assert key_text(b"caf\xe9") != key_text(b"caf\xea")
    assert key_text("caf\udce9") == "caf\\udce9"
    assert plain({"a": [float("nan"), 1.5, b"x", True], 2: None}) == {"a": [None, 1.5, "x", True], "2": None}
