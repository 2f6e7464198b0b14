from __future__ import annotations

from flaxtrain.parallel.processes.notices import Notice, Notices
from tests.parallel.processes.together import Texts


def test_what_is_told_arrives_as_it_was() -> None:
    notice = Notice("failed", 1, 37, 2, 'a "quoted"\nline')
    assert Notice.from_text(notice.text()) == notice


def test_all_processes_read_the_same_list() -> None:
    texts = Texts()
    lists = [Notices(texts) for _ in range(3)]
    for index, one in enumerate(lists):
        one.publish(Notice("failed", index))
    for one in lists:
        found = [one.next(0) for _ in range(4)]
        assert found == [*(Notice("failed", index) for index in range(3)), None]
