from rhythm.tasks.words import content_words, numbers_in
from tests.training import countdown


def test_words_of_grammar_say_nothing():
    assert content_words("So I get 3 apples, and the baker's boy doesn't!") == {
        "3",
        "apples",
        "baker's",
        "boy",
        "doesn't",
    }
    assert content_words("Ça coûte 5€") == {"ça", "coûte", "5"}
    assert content_words("") == set()


def test_of_countdown_the_numbers_count():
    assert countdown().content_words("so i take 3 + 12 = 15 , that leaves 15 3") == {"3", "12", "15"}


def test_numbers_of_any_text():
    assert numbers_in("Paid 3.50, then 12 more: x2 = -7.") == {"3.50", "12", "2", "7"}
