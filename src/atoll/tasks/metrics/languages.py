"""Whether a text is in a language, by its script and its most frequent words; enough for what IFEval asks."""

from __future__ import annotations

import re
import unicodedata

# Languages that share no script with another one listed here are told by it alone.
_SCRIPTS = {
    "ar": "ARABIC", "bg": "CYRILLIC", "bn": "BENGALI", "fa": "ARABIC", "gu": "GUJARATI", "hi": "DEVANAGARI",
    "kn": "KANNADA", "ko": "HANGUL", "mr": "DEVANAGARI", "ne": "DEVANAGARI", "pa": "GURMUKHI", "ru": "CYRILLIC",
    "ta": "TAMIL", "te": "TELUGU", "th": "THAI", "ur": "ARABIC",
}  # fmt: skip
_WORDS = {
    "ar": "في من على إلى أن هذا التي الذي كان مع عن لا هو هي ما أو",
    "bg": "и на да се не от за е с в че като са по със един това или",
    "de": "der die und das ist nicht ein eine zu den mit von auf für im sich dem auch es ich wir",
    "en": "the of and to a in is it you that for was on are with as i be this have from or an by not we",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como",
    "fa": "و در به از که این را با است برای آن می یک های ما خود تا",
    "fi": "ja on ei että se hän oli mutta ole niin kun myös joka sen ovat voi kuin tai minä olen",
    "fr": "de la le et les des en un une du que est pour qui dans a par plus pas sur ne se",
    "hi": "है के में की और का से को हैं एक यह पर नहीं कि भी लिए था ने हो आप",
    "it": "di e che la il un a per è in una sono con non del si da le come i della gli ma",
    "mr": "आहे आणि च्या मध्ये आहेत हे तो ती ते या एक आपण नाही साठी होते मी करा असे",
    "ne": "छ र को मा का हो गर्न छन् लागि यो पनि एक भने हरू छैन गर्ने हुन्छ थियो तपाईं",
    "pt": "de a que o e do da em um para é com não uma os no se na por mais as dos como você",
    "ru": "и в не на что я с он как это по но все к у из за то так для вы от",
    "sw": "na ya wa kwa ni katika la za kuwa cha hii au kama watu yake hiyo huo wetu wako mimi",
    "ur": "کے میں کی ہے اور سے کا کو اس ہیں یہ نے پر بھی ایک کہ لیے تھا ہو",
    "vi": "và của là có cho không được một người trong với các này đã những để tôi bạn khi",
}

_FREQUENT = {code: frozenset(words.split()) for code, words in _WORDS.items()}
# Vowel signs of Devanagari and Arabic are no letters to Python, but parts of words.
_WORD = re.compile(r"[\w\u0900-\u0963\u0610-\u065f]+")


def is_in_language(text: str, code: str) -> bool:
    """Whether `text` is in the language of that ISO 639-1 code. Raises KeyError for one that is not listed here."""
    script = _SCRIPTS.get(code, "LATIN")
    if code not in _SCRIPTS and code not in _WORDS:
        raise KeyError(f"no language {code!r}")
    if _main_script(text) != script:
        return False
    rivals = [other for other in _WORDS if _SCRIPTS.get(other, "LATIN") == script]
    if len(rivals) < 2:
        return True
    words = _WORD.findall(unicodedata.normalize("NFC", text.lower()))
    counts = {other: sum(word in _FREQUENT[other] for word in words) for other in rivals}
    return counts[code] == max(counts.values()) and counts[code] > 0


def _main_script(text: str) -> str:
    """The script of most letters, as the first word of their Unicode names says it."""
    counts: dict[str, int] = {}
    for character in text[:2_000]:
        if character.isalpha():
            script = unicodedata.name(character, "UNKNOWN").split(" ")[0]
            counts[script] = counts.get(script, 0) + 1
    return max(counts, key=counts.__getitem__, default="")
