"""Every registered tokenizer and every registered rule, held to what all of them promise."""

import pytest
from rule_checks import check_drawing, check_text
from tokenizer_checks import CONTRACT, check_tokenizer, small

from visual_ar import tokenizers
from visual_ar.accel.rules.parse import RULES


@pytest.mark.parametrize("name", sorted(set(tokenizers.CLASSES) - CONTRACT))
def test_a_tokenizer_keeps_its_promises(name, tmp_path):
    check_tokenizer(getattr(tokenizers, name), small(name), tmp_path)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_read_from_text(name):
    check_text(name)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_keeps_the_law_or_tells_what_it_spends(name):
    check_drawing(name)
