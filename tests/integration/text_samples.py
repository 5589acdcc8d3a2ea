"""Texts that tokenizers get wrong."""

import random

_MIXED = (
    "abc XYZ 0189 \t\n\r'\"!?.,-_{}[]()éßøñ中文日本語한국어٠١٢٣अआ😀👍🏽‍\u200b\u00a0\u2028\ufeff"
)


def _random_text(length: int) -> str:
    source = random.Random(20)
    everything = [chr(code) for code in range(0x20, 0x11000) if not 0xD800 <= code < 0xE000]
    return "".join(
        source.choice(_MIXED if source.random() < 0.8 else everything) for _ in range(length)
    )


TEXTS = {
    "plain": "The quick brown fox jumps over the lazy dog.",
    "code": "def f(x):\n    return {'a': x[0] ** 2}  # comment\n\n\tif x != None:\n\t\tpass\n",
    "emoji": "👩‍👩‍👧‍👦 🇫🇷 👍🏽 🙂🙂",
    "cjk": "中文字符，日本語のテキスト。한국어 문장입니다",
    "arabic_digits": "٠١٢٣٤٥٦٧٨٩ and 0123456789, 1,234.56",
    "line_ends": "one\r\ntwo\n\rthree\r\r\n\n\nfour",
    "special_tokens": "<|im_start|>user\nHi<|im_end|><|endoftext|><|im_start",
    "spaces": "   leading, trailing   \t\t  and   inner    ",
    "contractions": "I'm you're HE'S they'LL we'd don't 'tis o'clock",
    "accents": "naïve café Ångström e\u0301 \u212b ﬁ Straße",
    "escapes": "literal \\n and \\u00e9 and \\\\ backslashes",
    "empty": "",
    "random": _random_text(2000),
}
