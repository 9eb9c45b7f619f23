import torch

from semipermeable.runtime import PromptBook, Role, RowText


def test_rows_are_recognised_by_their_bytes(generator):
    book, rows = PromptBook(), torch.randn(4, 5, 3, generator=generator)
    book.write(rows, ["a cat", "a dog"], Role.PROMPT)
    texts = [entry.text for entry in book.read(torch.cat([torch.zeros(1, 5, 3), rows])) if entry is not None]
    assert texts == ["a cat", "a cat", "a dog", "a dog"]
    assert book.read(rows + 1e-6) == [None] * 4
    assert book.read(rows.half()) == [None] * 4


def test_roles_of_the_same_row_add_up():
    book, row = PromptBook(), torch.ones(1, 2)
    book.write(row, ["cat"], Role.PROMPT)
    assert book.read(row)[0].role == Role.PROMPT
    book.write(row, ["cat"], Role.NEGATIVE)
    assert book.read(row)[0].role == Role.PROMPT | Role.NEGATIVE


def test_a_tensor_changed_in_place_is_read_anew(generator):
    book, rows = PromptBook(), torch.randn(2, 3, generator=generator)
    book.write(rows, ["a", "b"], Role.PROMPT)
    assert book.read(rows)[1].text == "b"
    rows[1] = rows[0]
    assert book.read(rows)[1].text == "a"


def test_a_new_tensor_at_an_old_address_is_not_mistaken(generator):
    book = PromptBook()
    for index in range(50):
        rows = torch.full((1, 64), float(index))
        assert book.read(rows) == [None]
        book.write(rows, [str(index)], Role.PROMPT)
        assert book.read(rows)[0].text == str(index)
        del rows


def test_the_oldest_rows_are_forgotten_first():
    book = PromptBook(max_rows=2)
    for index in range(3):
        book.write(torch.full((1, 4), float(index)), [str(index)], Role.PROMPT)
    assert book.read(torch.zeros(1, 4)) == [None]
    assert book.read(torch.full((1, 4), 2.0))[0].text == "2"


def test_what_has_just_been_written_is_read_without_looking_at_its_bytes(generator, monkeypatch):
    book, rows = PromptBook(), torch.randn(2, 3, generator=generator)
    book.write(rows, ["a", "b"], Role.PROMPT)
    with monkeypatch.context() as patched:
        patched.setattr("semipermeable.runtime.prompt_book._fingerprints", None)
        assert [entry.text for entry in book.read(rows)] == ["a", "b"]
    # The same bytes in another role: what was known of the first tensor is no longer all that is known.
    book.write(rows.clone(), ["a", "b"], Role.NEGATIVE)
    assert book.read(rows)[0].role == Role.PROMPT | Role.NEGATIVE


def test_one_row_as_a_list_is_not_taken_for_a_tensor_of_many(generator):
    book, row = PromptBook(), torch.randn(4, 3, generator=generator)
    book.write([row], ["a cat"], Role.PROMPT)
    assert [entry.text for entry in book.read([row])] == ["a cat"]
    assert book.read(row) == [None] * 4


def test_rows_of_different_lengths_come_as_a_list(generator):
    book, rows = PromptBook(), [torch.randn(n, 3, generator=generator) for n in (2, 5)]
    book.write([row for row in rows for _ in range(2)], ["a cat", "a dog"], Role.PROMPT)
    found = book.read(rows)
    assert [entry.text for entry in found] == ["a cat", "a dog"]
    assert book.read(list(rows)) is found
    assert book.read([rows[1], torch.zeros(2, 3)])[1] is None


def test_rows_of_one_call_whose_bytes_agree_have_all_their_texts(generator):
    """One encoder's rows may be equal where another encoder read different texts."""
    book, row = PromptBook(), torch.randn(1, 5, 3, generator=generator)
    texts = [RowText(["a cat", "in oil"]), RowText(["a dog", "in oil"], 512), "a fox"]
    book.write(row.expand(3, 5, 3).clone(), texts, Role.PROMPT)
    (entry,) = book.read(row)
    assert entry.text == RowText(["a cat", "in oil", "a dog", "a fox"], 512)
    book.write(row, ["a fox"], Role.PROMPT)
    assert book.read(row)[0].text == "a fox"  # another call, other rows
    book.write(row.expand(2, 5, 3).clone(), ["a fox"] * 2, Role.PROMPT)
    assert not isinstance(book.read(row)[0].text, RowText)
