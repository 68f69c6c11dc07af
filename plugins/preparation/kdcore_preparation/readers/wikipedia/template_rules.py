"""Rules that convert templates to text, and their form in a recipe."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from kdcore_preparation.readers.wikipedia.wiki_languages import Wiki
from kdcore_preparation.readers.wikipedia.wikitext_tokens import GAP

DROP = "drop"
"""Value in a recipe for a template that is dropped."""

_SPACE_AND_GAP = f" \t\n\r{GAP}"
_SUPERSCRIPT = str.maketrans("0123456789+-−", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻")
_UNIT_POWER = re.compile(r"(?<=[^\W\d_])(-?\d)(?!\d)")
_LONGEST_NUMBER = 60
_NUMBER = re.compile(r"[+\-−]?[\d.,/+⁄½¼¾⅓⅔⅛ ]*\d[\d.,/+⁄½¼¾⅓⅔⅛ ]*(?:e[+-]?\d+)?|[½¼¾⅓⅔⅛]")


class TemplateArguments:
    """The arguments of one template, as text; names are in lower case.

    Attributes:
        wiki: the wiki of the dump.
        name: name of the template, in lower case, with spaces and without a namespace.
        value: for a parser function, the text after its colon.
    """

    def __init__(self, node: Any, name: str, value: str, wiki: Wiki, render: Callable[[Any], str]) -> None:
        self.wiki = wiki
        self.name = name
        self.value = value.strip(_SPACE_AND_GAP)
        self._render = render
        # The case of argument names differs between languages; if a name is repeated, the last argument counts.
        self._stated = {str(each.name).strip(_SPACE_AND_GAP).casefold(): each.value for each in node.params}
        self._rendered: dict[str, str] = {}

    def get(self, *names: str) -> str:
        """Return the first of these arguments that is not empty; negative numbers are counted from the end."""
        for name in names:
            if name.startswith("-") and name[1:].isdecimal():
                name = str(self.count + 1 - int(name[1:]))
            if name not in self._rendered:
                value = self._stated.get(name)
                self._rendered[name] = "" if value is None else self._render(value).strip(_SPACE_AND_GAP)
            if self._rendered[name]:
                return self._rendered[name]
        return ""

    def plain(self, *names: str) -> str:
        """Return an argument like `get`, but as one line without the marks of omitted content."""
        return " ".join(self.get(*names).replace(GAP, "").split())

    @property
    def count(self) -> int:
        """Number of numbered arguments before the first missing one."""
        count = 0
        while str(count + 1) in self._stated:
            count += 1
        return count

    @property
    def words(self) -> list[str]:
        """The numbered arguments, empty ones included."""
        return [self.plain(str(number)) for number in range(1, self.count + 1)]


Rule = Callable[[TemplateArguments], str]
"""Return the text of a template; a template with empty text is dropped and counted."""


def rule_of(spec: int | str) -> Rule:
    """Return the rule for an entry of a recipe or table.

    Args:
        spec: number or name of an argument; or a text with arguments in braces, such as `{1} {unit}`. `{a|b}` is the
            first of two arguments that is not empty; `{-1}` is the last numbered argument; a part in `<...>` is left
            out if an argument in it is missing.

    Raises:
        ValueError: the entry is invalid.
    """
    if isinstance(spec, int):
        if spec == 0:
            raise ValueError("arguments are numbered from 1 (found 0)")
        return _TemplateText(f"{{{spec}}}")
    if not spec.strip():
        raise ValueError("it is empty (expected an argument's number or name, a text such as `{1} {2}`, or `drop`)")
    return _TemplateText(spec if re.search(r"[{}<>]", spec) else f"{{{spec.strip()}}}")


class _TemplateText:
    """A text with arguments."""

    def __init__(self, spec: str) -> None:
        self._parts, end = _parts_of(spec, 0)
        if end < len(spec):
            raise ValueError(f"`>` without `<` in `{spec}`")
        if not any(isinstance(part, (tuple, list)) for part in self._parts):
            raise ValueError(f"there is no argument in `{spec}` (expected one in braces, such as `{{1}}`)")

    def __call__(self, arguments: TemplateArguments) -> str:
        text, found = _filled(self._parts, arguments)
        return text if found else ""


def _parts_of(spec: str, place: int) -> tuple[list[Any], int]:
    """Split a text into plain strings, tuples of alternative argument names, and lists of optional parts."""
    parts: list[Any] = []
    while place < len(spec) and spec[place] != ">":
        if spec[place] == "{":
            end = spec.find("}", place)
            names = [name.strip().casefold() for name in spec[place + 1 : end].split("|")]
            if end < 0 or not all(names) or any("{" in name for name in names):
                raise ValueError(f"`{spec}` has a brace that is not followed by an argument's name and a closing brace")
            if any(name.lstrip("-") == "0" for name in names):
                raise ValueError("arguments are numbered from 1 (found 0)")
            parts.append(tuple(names))
            place = end + 1
        elif spec[place] == "}":
            raise ValueError(f"`}}` without `{{` in `{spec}`")
        elif spec[place] == "<":
            inner, place = _parts_of(spec, place + 1)
            if place >= len(spec):
                raise ValueError(f"`<` without `>` in `{spec}`")
            if not any(isinstance(part, tuple) for part in inner):
                raise ValueError(f"a part in `<...>` of `{spec}` has no argument")
            parts.append(inner)
            place += 1
        else:
            end = min((at for at in (spec.find(mark, place) for mark in "{}<>") if at >= 0), default=len(spec))
            parts.append(spec[place:end])
            place = end
    return parts, place


def _filled(parts: Sequence[Any], arguments: TemplateArguments, *, optional: bool = False) -> tuple[str, bool]:
    """Return the text, and whether it contains an argument; an optional part with a missing argument is empty."""
    text, found = "", False
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        if isinstance(part, tuple):
            words = arguments.get(*part)
            if optional and not words:
                return "", False
            text, found = text + words, found or bool(words)
        else:
            words, inside = _filled(part, arguments, optional=True)
            text, found = text + words, found or inside
    return text, found


def _powers(unit_text: str) -> str:
    return _UNIT_POWER.sub(lambda power: superscript(power[0]), unit_text)


def superscript(digits: str) -> str:
    """Write a number in superscript digits."""
    return digits.translate(_SUPERSCRIPT)


def unit(code: str) -> str:
    """Return the symbol of a unit from its code in conversion templates."""
    if multiple := re.fullmatch(r"e(3|6|9|12)([^\d\W].*)", code):
        return f"{_MULTIPLES[multiple[1]]} {unit(multiple[2])}"
    return _UNITS.get(code) or _powers(code)


def conversion(arguments: TemplateArguments) -> str:
    """Write the quantity of a unit conversion in its original units: `6 ft 2 in`, `5 x 3 x 2 m`, `10–20 km`."""
    words = arguments.words
    text, place, needs_unit = "", 0, False
    while place < len(words) and words[place]:
        between = _RANGES.get(words[place].casefold()) if text and _is_number(words[place + 1 : place + 2]) else None
        if between:
            text, needs_unit = text + between + words[place + 1], True
            place += 2
        elif not text:
            text, needs_unit = words[place], True
            place += 1
        elif needs_unit:
            text, needs_unit = f"{text} {unit(words[place])}", False
            place += 1
        elif (
            _is_number(words[place : place + 1]) and words[place + 1 : place + 2] and not _is_number(words[place + 1 :])
        ):
            text, needs_unit = f"{text} {words[place]}", True  # in a smaller unit: feet and inches
            place += 1
        else:
            break  # units to convert to
    return text


def height(arguments: TemplateArguments) -> str:
    """Write a height or weight whose units are argument names: `6 ft 2 in`."""
    found = [f"{value} {name}" for name in _HEIGHT_UNITS if (value := arguments.plain(name))]
    return " ".join(found)


def measured_value(arguments: TemplateArguments) -> str:
    """Write a value with its uncertainty, power of ten and unit, like the template `val`."""
    value, *errors = arguments.words or [""]
    if arguments.plain("fmt") == "commas":
        value = arguments.wiki.number(value)
    plus_minus = ""
    if len(errors) >= 2 and (between := _RANGES.get(errors[0])):
        value += between + errors[1]
    elif len(errors) == 1 and errors[0]:
        error = errors[0]
        plus_minus = error if error.startswith("(") else f"±{error}"
    elif len(errors) >= 2 and all(errors[:2]):
        plus_minus = f" +{errors[0].lstrip('+')} −{errors[1].lstrip('-−')}"
    text = value + plus_minus
    power = arguments.plain("e")
    if power:
        text = f"({text})" if plus_minus and not plus_minus.startswith("(") else text
        text = f"{text}×10{superscript(power)}" if text else f"10{superscript(power)}"
    if not text:
        return ""
    above, below = arguments.plain("u", "ul"), arguments.plain("up", "upl")
    shown = _powers(above.replace(".", "⋅")).replace("deg", "°") + (f"/{_powers(below)}" if below else "")
    space = "" if not shown or (shown[0] in "%°′″" and shown not in ("°C", "°F")) else " "
    return f"{arguments.plain('p', 'pu')}{text}{space}{shown}{arguments.plain('s', 'end')}"


def joined(between: str = "", *, start: int = 1) -> Rule:
    """Return the rule that joins the numbered arguments from `start` on."""

    def rule(arguments: TemplateArguments) -> str:
        return between.join(filter(None, arguments.words[start - 1 :]))

    return rule


def chemical_formula(arguments: TemplateArguments) -> str:
    """Join the elements and numbers of a chemical formula."""
    return "".join(arguments.words)


def phonetic(arguments: TemplateArguments) -> str:
    """Return a transcription, without the language code before it and labels such as `lang`."""
    first, *others = arguments.words or [""]
    sounds = [word for word in others if word and word.casefold() not in _PHONETIC_LABELS]
    code = first.casefold() in _PHONETIC_LABELS or re.fullmatch(r"[a-z]{2,3}(?:-[\w-]+)?", first)
    return sounds[0] if sounds and code else first


def phonetic_pieces(arguments: TemplateArguments) -> str:
    """Join the sounds of a transcription that is given sound by sound."""
    sounds = [word.replace("_", " ") for word in arguments.words if word.casefold() not in _PHONETIC_LABELS]
    text = "".join(sounds)
    return f"/{text}/" if text else ""


def as_of(arguments: TemplateArguments) -> str:
    """Write `As of March 2014`."""
    if alternative := arguments.get("alt"):
        return alternative
    words = arguments.words
    if not words or not words[0]:
        return ""
    if re.fullmatch(r"\d{4}-\d{1,2}(?:-\d{1,2})?", words[0]):
        words = words[0].split("-")
    date = english_date(words[:3], day_first=arguments.plain("df").casefold() not in ("us", "mdy", "y"))
    word = "since" if _is_set(arguments, "since") else "as of"
    if _is_set(arguments, "bare"):
        word = ""
    elif not _is_set(arguments, "lc"):
        word = word.capitalize()
    before, after = arguments.plain("pre"), arguments.plain("post")
    text = " ".join(filter(None, (word, before, date)))
    return f"{text}{after}" if after[:1] in tuple(",.;:") else f"{text} {after}".strip()


def english_date(words: Sequence[str], *, day_first: bool) -> str:
    """Write year, month and day in English."""
    year, month, day = (*words, "", "", "")[:3]
    month = _month_name(month, Wiki("en"))
    if not month:
        return year
    if not day:
        return f"{month} {year}"
    day = str(int(day)) if day.isdecimal() else day
    return f"{day} {month} {year}" if day_first else f"{month} {day}, {year}"


def date_of_template(*, day_first: bool) -> Rule:
    """Return the rule for templates with year, month and day, such as `birth date`."""

    def rule(arguments: TemplateArguments) -> str:
        chosen = _is_set(arguments, "df") or (day_first and not _is_set(arguments, "mf"))
        words = [word for word in arguments.words if word][:3]
        if words and not words[0][:4].isdecimal():
            return words[0]
        return english_date(words, day_first=chosen)

    return rule


def local_date(order: str) -> Rule:
    """Return the rule for a date template that writes its numbered arguments in order.

    Args:
        order: separator between the parts, such as ` de ` in Spanish; in Chinese and Japanese, the signs for year,
            month and day.
    """

    def rule(arguments: TemplateArguments) -> str:
        words = [word for word in arguments.words if word]
        if len(words) >= 2 and re.fullmatch(r"\d{1,2}", words[1]) and len(words[0]) <= 4:
            number = int(words[1])
            if 1 <= number <= 12:
                words[1] = arguments.wiki.month(number)
        if len(words) >= 2 and len(words[0]) == 4 and words[0].isdecimal():
            words[:3] = reversed(words[:3])
        if words[:1] == ["1"] and arguments.wiki.base_language == "fr":
            words[0] = "1er"
        return order.join(words[:3])

    return rule


def east_asian_date(signs: str) -> Rule:
    """Return the rule for a date as year, month and day, each followed by a sign."""

    def rule(arguments: TemplateArguments) -> str:
        words = [word for word in arguments.words if word][:3]
        between = " " if signs[0] == "년" else ""
        return between.join(word + (sign if word.isdecimal() else "") for word, sign in zip(words, signs, strict=False))

    return rule


def formatted_number(arguments: TemplateArguments) -> str:
    """Write the number of `{{formatnum:1200}}` in the format of the wiki's language."""
    digits = "".join(arguments.value.replace(GAP, "").split())
    option = arguments.plain("1").casefold()
    if option in ("r", "nosep") or not digits:
        return digits.replace(",", "") if option == "r" else digits
    return arguments.wiki.number(digits)


def quantity(arguments: TemplateArguments) -> str:
    """Write a number and its unit, like the templates `unité`, `unidad` and `num` of several wikis.

    The numbered arguments are the number and units, each optionally followed by a power: `unité|5|m|2`.
    """
    words = arguments.words
    if not words or not words[0]:
        return ""
    text = arguments.wiki.number(words[0].replace(" ", "").replace(",", ".")) if _is_number(words) else words[0]
    if len(words) > 2 and _is_number(words[2:]) and (between := _RANGES.get(words[1].casefold())):
        text += between + arguments.wiki.number(words[2].replace(" ", "").replace(",", "."))
        words = words[2:]
    power = arguments.plain("e")
    if power:
        text += f"×10{superscript(power)}"
    units: list[str] = []
    for word in filter(None, words[1:]):
        if units and re.fullmatch(r"[-−]?\d", word):
            units[-1] += superscript(word)
        else:
            units.append(word)
    shown = "⋅".join(units) or arguments.plain("u", "ul", "um")
    return f"{text} {shown}".strip()


def fraction(arguments: TemplateArguments) -> str:
    """Write `1⁄2`, `3 1⁄2`; sums are put in parentheses."""
    words = [f"({word})" if re.search(r"\S ?[+−-]", word) else word for word in arguments.words if word]
    if not words:
        return ""
    if len(words) == 1:
        return f"1⁄{words[0]}"
    return f"{words[-3]} {words[-2]}⁄{words[-1]}" if len(words) > 2 else f"{words[0]}⁄{words[1]}"


def japanese(arguments: TemplateArguments) -> str:
    """Write a term with its Japanese form and transcription: `tea house (茶屋, chaya)`."""
    term, signs, romaji = (arguments.get(name) for name in "123")
    rest = [term, signs, romaji] if term else [romaji, signs] if romaji else [signs]
    shown, *others = rest
    others = [*filter(None, others), *filter(None, [arguments.get("4", "extra")])]
    return f"{shown} ({', '.join(others)})" if shown and others else shown


def linked_language(arguments: TemplateArguments) -> str:
    """Return the text of a link to an article in another language; in older links, the first argument is its code."""
    if label := arguments.get("lt", "display", "label", "text"):
        return label
    words = arguments.words
    if len(words) > 2 and re.fullmatch(r"[a-z]{2,3}", words[0]):
        return arguments.get("4", "3")
    return arguments.get("1")


def bible_verse(arguments: TemplateArguments) -> str:
    """Write `1 John 4:18`; what follows the verse is an edition."""
    words = [word for word in arguments.words if word]
    if words[:1] in (["1"], ["2"], ["3"]) and len(words) > 1:
        words[:2] = [f"{words[0]} {words[1]}"]
    if len(words) > 2 and ":" not in words[1]:
        words[1:3] = [f"{words[1]}:{words[2]}"]
    return " ".join(words[:2])


def musical_sign(arguments: TemplateArguments) -> str:
    """Write the musical sign with a given name."""
    name = arguments.plain("1")
    return {"flat": "♭", "b": "♭", "sharp": "♯", "#": "♯", "natural": "♮", "time": ""}.get(name.casefold(), name)


def power_of_ten(arguments: TemplateArguments) -> str:
    """Write `×10⁵`."""
    power = arguments.plain("1")
    return f"×10{superscript(power)}" if power else ""


def ship(prefix: str) -> Rule:
    """Return the rule for ship templates, such as `HMS`: name and, unless a format is given, year or number."""

    def rule(arguments: TemplateArguments) -> str:
        name, number, style = (*arguments.words, "", "", "")[:3]
        shown = f"{prefix} {name}" if name else ""
        return f"{shown} ({number})" if shown and number and not style else shown

    return rule


def named_variants(*names: str, between: str = "; ") -> Rule:
    """Return the rule that joins the named arguments that are present."""

    def rule(arguments: TemplateArguments) -> str:
        return between.join(dict.fromkeys(filter(None, (arguments.get(name) for name in names))))

    return rule


def century(arguments: TemplateArguments) -> str:
    """Write a French century: `XXe siècle`."""
    number, ending = (*arguments.words, "", "")[:2]
    before_christ = " av. J.-C." if arguments.name.startswith("-") else ""
    return f"{number}{ending or 'e'} siècle{before_christ}" if number else ""


def centuries(arguments: TemplateArguments) -> str:
    """Write French centuries: `XIXe et XXe siècles`; an argument may replace `et`."""
    words = arguments.words
    between = f" {words.pop(2)} " if len(words) == 5 else " et "
    pairs = [f"{number}{ending}" for number, ending in zip(words[::2], words[1::2], strict=False)]
    return f"{between.join(pairs)} siècles" if len(pairs) > 1 else ""


def name_itself(arguments: TemplateArguments) -> str:
    """Return the name of a template as its text, with Roman numerals in capitals."""
    name = arguments.name.replace("av. j.-c.", "av. J.-C.")
    return re.sub(r"^[ivxlcdm]+(?=(?:er?|re|ème)\b)", lambda number: number[0].upper(), name)


def changed_case(change: Callable[[str], str]) -> Rule:
    """Return the rule for a parser function that changes the case of its value."""
    return lambda arguments: change(arguments.value)


def fixed(text: str) -> Rule:
    """Return the rule for a template that always has the same text."""
    return lambda _: text


def _is_set(arguments: TemplateArguments, name: str) -> bool:
    return arguments.plain(name).casefold() not in ("", "n", "no", "off", "0", "false")


def _month_name(month: str, wiki: Wiki) -> str:
    if month.isdecimal():
        return wiki.month(int(month)) if 1 <= int(month) <= 12 else ""
    return month


def _is_number(words: Sequence[str]) -> bool:
    return bool(words) and len(words[0]) <= _LONGEST_NUMBER and _NUMBER.fullmatch(words[0]) is not None


# fmt: off
_RANGES = {
    "to": " to ", "-": "–", "–": "–", "and": " and ", "and(-)": " and ", "by": " by ", "x": " x ", "×": " × ",
    "xx": " × ", "*": " × ", "or": " or ", "to(-)": " to ", "to about": " to about ", "+/-": " ± ", "±": " ± ",
    "+": " + ", ",": ", ", "a": " a ", "e": " e ", "y": " y ", "et": " et ", "à": " à ", "bis": " bis ", "und": " und ",
    "~": "~", "−": "–",
}
_UNITS = {
    "C": "°C", "F": "°F", "°C": "°C", "°F": "°F", "K": "K", "sqmi": "sq mi", "sqft": "sq ft", "sqyd": "sq yd",
    "sqin": "sq in", "sqkm": "km²", "sqm": "m²", "cuft": "cu ft", "cuyd": "cu yd", "cuin": "cu in", "cumi": "cu mi",
    "cc": "cc", "kmh": "km/h", "kph": "km/h", "kn": "kn", "USgal": "US gal", "usgal": "US gal", "impgal": "imp gal",
    "USoz": "US oz", "USfloz": "US fl oz", "impfloz": "imp fl oz", "lb-ft": "lb⋅ft", "lbft": "lb⋅ft",
    "ft.lbf": "ft⋅lbf",
    "ftlb": "ft⋅lb", "Nm": "N⋅m", "N.m": "N⋅m", "kWh": "kWh", "hp-metric": "hp", "mpgUS": "mpg", "oilbbl": "bbl",
    "cufoot": "cu ft", "acre-ft": "acre⋅ft", "acre.ft": "acre⋅ft", "PD/sqmi": "/sq mi", "PD/km2": "/km²",
}
_MULTIPLES = {"3": "thousand", "6": "million", "9": "billion", "12": "trillion"}
_HEIGHT_UNITS = ("ft", "in", "st", "lb", "m", "cm", "kg")
_PHONETIC_LABELS = frozenset((
    "lang", "local", "ipa", "also", "uk", "us", "usalso", "ukalso", "usuk", "ukus", "uklang", "uslang", "pron",
    "ukpron", "uspron", "alsous", "alsouk", "au", "nz", "ca", "ir", "sct", "ie", "locally", "small", "audio",
))
# fmt: on
