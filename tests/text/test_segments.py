"""The rule: captions to the sources that they name."""

import pytest

from opensep_jax.text.segments import MAX_SOURCES, MAX_WORDS, segments
from opensep_jax.text.words import participle, verb_base

# Captions of our own, with the sources that they name.
CAPTIONS = {
    "A dog barks while rain falls": ["dog barking", "rain falling"],
    "Two dogs bark and a cat meows": ["two dogs barking", "cat meowing"],
    "A man and a woman talk": ["man talking", "woman talking"],
    "A man, a woman and a child talk": ["man talking", "woman talking", "child talking"],
    "A man speaks, then a dog barks, and the man speaks again": ["man speaking", "dog barking"],
    "A man speaks and another man speaks": ["man speaking", "another man speaking"],
    "A girl sings and giggles": ["girl singing", "girl giggling"],
    "An old pump thumps and rattles": ["old pump thumping and rattling"],
    "Dirt and gravel pour": ["dirt and gravel pouring"],
    "Hissing and rattling of a train": ["train hissing and rattling"],
    "Chirps of birds over the humming of a small drill": ["birds chirping", "small drill humming"],
    "A song is played on a piano": ["piano"],
    "Someone plays the harp while a boy plays a melody on a flute": ["harp", "flute"],
    "A woman uses a drill": ["drill"],
    "Water runs into a sink in the background": ["water running"],
    "A man speaks over a radio": ["man speaking"],
    "A crowd of people cheers": ["crowd of people cheering"],
    "A train passes, then fades away": ["train passing"],
    "A kettle begins to whistle as it heats up": ["kettle whistling"],
    "Wind causing leaves to rustle, followed by thunders": ["wind", "leaves rustling", "thunders"],
    "A girl hums while cutting paper then laughs": [
        "girl humming",
        "cutting paper",
        "girl laughing",
    ],
    "Girls sing as cars speed by and gongs ring": [
        "girls singing",
        "cars speeding",
        "gongs ringing",
    ],
    "A hidden beep occurs": ["hidden beep"],
    "Crying followed by thunder and then more crying": ["crying", "thunder"],
    "Un chien aboie, une voiture passe": ["un chien aboie", "une voiture passe"],
    "狗在叫，鸟在唱歌": ["狗在叫", "鸟在唱歌"],
    '🐶 "barking"!!': ["barking"],
    "the sound": ["the sound"],
}


@pytest.mark.parametrize("caption", CAPTIONS)
def test_names_the_sources_of_a_caption(caption: str):
    assert [source.name for source in segments(caption)] == CAPTIONS[caption]


def test_remembers_the_words_that_it_changed():
    (source,) = segments("A small dog barks")
    assert source.words == ("small", "dog", "barking") and source.verbs == ((2, "barks"),)


@pytest.mark.parametrize("caption", ["", " \n", "...", "🐶"])
def test_a_caption_without_words_is_an_error(caption: str):
    with pytest.raises(ValueError, match="has no words"):
        segments(caption)


def test_any_length_gives_a_bounded_result():
    found = segments(
        ", ".join(f"machine{i} whirs very noisily and hums on and on" for i in range(100))
    )
    assert len(found) == MAX_SOURCES
    assert len({source.name for source in found}) == MAX_SOURCES
    assert all(len(source.words) <= MAX_WORDS for source in segments("big old red " * 200 + "bell"))


def test_forms_of_verbs():
    for base, form, third in (
        ("bark", "barking", "barks"),
        ("hum", "humming", "hums"),
        ("whistle", "whistling", "whistles"),
        ("cry", "crying", "cries"),
        ("buzz", "buzzing", "buzzes"),
        ("creak", "creaking", "creaked"),
    ):
        assert participle(base) == form
        assert verb_base(form) == verb_base(third) == base
    assert verb_base("piano") is None
